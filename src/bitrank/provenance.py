"""Tables that hold several records against each other: proof of treatment and of identity.

A run is believed when its live models were held as asked at every stage, when each stage used what
the one before it made, and when a reader knows code, versions and machine. Values that agree are
told once; one that does not names the stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitrank import paths, records
from bitrank.errors import UserError
from bitrank.runs import STAGES, Run
from bitrank.tables import (
    MISSING,
    NOT_APPLICABLE,
    UNKNOWN,
    Cell,
    Column,
    Table,
    format_value,
    kind_of,
    look_up,
    show,
    text,
)

LONG_LIST = 8
"""Lists of mappings longer than this, such as losses, have tables or figures of their own."""
_HELD = (
    "quant_types", "block_sizes", "double_quant", "compute_dtypes", "stored_elements_by_dtype",
)  # fmt: skip


def treatment_table(run: Run) -> Table:
    """How each stage's live model held its weights."""
    rows = []
    for stage in ("quantize", "train", "measure", *(f"evaluate-{s}" for s in paths.SUBJECTS)):
        live = live_precision(run, stage)
        if live is None:
            rows.append([text(stage), *[Cell(_absent(run, stage))] * 7])
            continue
        layers = [live.get(key) for key in ("num_quantized_layers", "num_linear_layers")]
        values = [live.get(key) for key in _HELD]
        computed_on = run.find(stage, "treatment", "computed_on")
        rows.append([
            text(stage),
            text(" of ".join(format_value(value) for value in layers)),
            *(text(format_value(value)) for value in values),
            text(computed_on or NOT_APPLICABLE),
        ])  # fmt: skip
    heads = (("stage", "Stage"), ("quantized", "Quantized layers"), ("types", "Type"),
             ("block_sizes", "Block size"), ("double_quant", "Double quantization"),
             ("compute_dtypes", "Compute type"), ("stored", "Elements held by type"),
             ("computed_on", "Computed on"))  # fmt: skip
    return Table(
        name="treatment",
        title="How the live model held its weights",
        columns=[Column(*head) for head in heads],
        rows=rows,
        notes=["4-bit weights are packed: one element of type uint8 holds two of them."],
    )


def live_precision(run: Run, stage: str) -> Mapping[str, Any] | None:
    """What `weights.describe_precision` saw in the stage's live model; null where not recorded."""
    found = run.find(stage, "treatment", "precision")
    return found if isinstance(found, Mapping) else None


_EVALUATIONS = tuple(f"evaluate-{subject}" for subject in paths.SUBJECTS)
_ON_QUANTIZED = (
    "train", "measure", "merge", "fidelity", "evaluate-quantized", "evaluate-adapter",
)  # fmt: skip
_CHAIN: tuple[tuple[str, str, str, Mapping[str, str]], ...] = (
    ("original base", "fetch", "base_hash",
     {"quantize": "base_hash",
      **dict.fromkeys(("train", "measure", "merge", "fidelity", *_EVALUATIONS), "original_hash")}),
    ("quantized base", "quantize", "base_hash", dict.fromkeys(_ON_QUANTIZED, "base_hash")),
    ("template", "prepare", "template_hash",
     dict.fromkeys(("train", "measure", "merge", "fidelity", *_EVALUATIONS), "template_hash")),
    ("rows", "prepare", "data_hash",
     dict.fromkeys(("control", "train", "measure", "merge", "fidelity", *_EVALUATIONS),
                   "data_hash")),
    ("first weights", "train", "first_weights_hash",
     dict.fromkeys(("merge", "fidelity", "evaluate-adapter", "evaluate-merged"),
                   "first_weights_hash")),
    ("adapter", "train", "adapter_hash",
     dict.fromkeys(("merge", "fidelity", "evaluate-adapter", "evaluate-merged"), "adapter_hash")),
    ("merged model", "merge", "merged_hash", {"evaluate-merged": "merged_hash"}),
)  # fmt: skip
"""What is handed on, which stage's result names it, and under which key its users name it."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One hand-over: what its maker made, and what its user says it used; null where untold."""

    what: str
    maker: str
    made: str | None
    user: str
    used: str | None

    @property
    def is_broken(self) -> bool:
        return None not in (self.made, self.used) and self.made != self.used


def links(run: Run) -> list[Link]:
    """Each hand-over of the run."""
    return [
        Link(what=what, maker=maker, made=run.find(maker, "result", key), user=user,
             used=run.find(user, "treatment", named))
        for what, maker, key, users in _CHAIN
        for user, named in users.items()
    ]  # fmt: skip


def check_chain(run: Run) -> None:
    """Raises UserError: the records are not those of one run; each broken hand-over is named."""
    broken = [
        f"{link.user} used another {link.what} ({str(link.used)[:12]}) than {link.maker} made "
        f"({str(link.made)[:12]})"
        for link in links(run)
        if link.is_broken
    ]
    if broken:
        raise UserError(
            f"the records do not belong together: {'; '.join(broken)}: `dvc repro` makes those "
            "that are missing or old"
        )


def identities_table(run: Run) -> Table:
    rows = []
    for what, maker, key, users in _CHAIN:
        made = run.find(maker, "result", key)
        shown = Cell(_absent(run, maker)) if made is None else show(made, "hash")
        agrees = shown if made is None else text(_agreement(run, what))
        rows.append([text(what), text(maker), shown, text(", ".join(users)), agrees])
    return Table(
        name="identities",
        title="What was handed from stage to stage",
        columns=[Column("what", "What"), Column("made_by", "Made by"), Column("sha256", "sha256"),
                 Column("used_by", "Used by"), Column("agrees", "The same there")],
        rows=rows,
        notes=["The first twelve digits; tables/identities.csv holds them whole."],
    )  # fmt: skip


def _agreement(run: Run, what: str) -> str:
    """Yes, or where not and where nothing tells."""
    of = [link for link in links(run) if link.what == what]
    broken = [link.user for link in of if link.is_broken]
    untold = [f"{link.user} ({_absent(run, link.user)})" for link in of if link.used is None]
    told = [f"not in {', '.join(broken)}"] if broken else []
    return "; ".join(told + untold) or "yes"


def _absent(run: Run, stage: str) -> str:
    return UNKNOWN if stage in run.records else MISSING


def environment_table(run: Run) -> Table:
    """Versions and hardware; a value that differs between stages names them."""
    seen: dict[str, dict[str, list[str]]] = {}
    for stage in STAGES:
        environment = run.find(stage, "observation", "environment") or {}
        for key, value in flatten(environment):
            shown = format_value(value, kind_of(key))
            if not key.startswith("git_"):  # the table of the stages tells it
                seen.setdefault(key, {}).setdefault(shown, []).append(stage)
    rows = []
    for key, values in seen.items():
        told = [v if len(values) == 1 else f"{v} ({', '.join(s)})" for v, s in values.items()]
        rows.append([text(key), text("; ".join(told))])
    columns = [Column("key", "What"), Column("value", "Value")]
    return Table(name="environment", title="Versions and hardware", columns=columns, rows=rows)


def stages_table(run: Run) -> Table:
    rows = []
    for stage in STAGES:
        seconds = look_up(run, stage, "observation", "wall_seconds")
        commit = look_up(run, stage, "observation", "environment", "git_commit", kind="hash")
        dirty = look_up(run, stage, "observation", "environment", "git_dirty")
        rows.append([text(stage), seconds, commit, dirty])
    return Table(
        name="stages",
        title="How long each stage took, and at which commit",
        columns=[Column("stage", "Stage"), Column("wall_seconds", "Time"),
                 Column("git_commit", "Commit"), Column("git_dirty", "Uncommitted changes")],
        rows=rows,
    )  # fmt: skip


def records_table(run: Run) -> Table:
    """Every value of every record at full precision; lists of measurements by their length."""
    rows = []
    for stage in STAGES:
        if stage in run.records:
            body = {k: v for k, v in vars(run.records[stage]).items() if k != "stage"}
            rows += [[text(stage), text(key), Cell(_raw(v), v)] for key, v in flatten(body)]
    return Table(
        name="records",
        title="Every recorded value",
        columns=[Column("stage", "Stage"), Column("key", "Key"), Column("value", "Value")],
        rows=rows,
    )


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, leaf) pairs in the given order; a long list of mappings becomes its length."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        if len(value) > LONG_LIST:
            return [(prefix, f"{len(value)} entries")]
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return [(prefix, value)]
    inner = [flatten(v, f"{prefix}.{key}" if prefix else str(key)) for key, v in value.items()]
    return [pair for pairs in inner for pair in pairs]


def _raw(value: Any) -> str:
    return value if isinstance(value, str) else records.canonical_json(value)
