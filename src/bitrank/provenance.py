"""Tables that hold several records against each other: proof of treatment and of identity.

A run is believed when its live models were held as asked at every stage, when each stage used what
the one before it made, and when a reader knows code, versions and machine. Values that agree are
told once; one that does not names the stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitrank import paths, records
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


def links(run: Run) -> list[tuple[str, str, Any, str, Any]]:
    """(what, made by, its hash, used by, the hash named there) of each hand-over of the run."""
    evaluations = [f"evaluate-{subject}" for subject in paths.SUBJECTS]
    chain = [
        ("original base", "fetch", "base_hash", ("quantize", "evaluate-original")),
        ("quantized base", "quantize", "base_hash",
         ("train", "measure", "merge", "fidelity", "evaluate-quantized", "evaluate-adapter")),
        ("rows", "prepare", "data_hash", ("train", "control", "fidelity", *evaluations)),
        ("adapter", "train", "adapter_hash", ("merge", "fidelity", "evaluate-adapter")),
        ("merged model", "merge", "merged_hash", ("evaluate-merged",)),
    ]  # fmt: skip
    return [
        (what, maker, run.find(maker, "result", key), user, run.find(user, "treatment", key))
        for what, maker, key, users in chain
        for user in users
    ]


def identities_table(run: Run) -> Table:
    rows = []
    for what, maker, made, user, named in links(run):
        shown = Cell(_absent(run, maker)) if made is None else show(made, "hash")
        agrees = shown if made is None else Cell(_absent(run, user))
        if made is not None and named is not None:
            agrees = text(format_value(made == named))
        rows.append([text(what), text(maker), shown, text(user), agrees])
    return Table(
        name="identities",
        title="What was handed from stage to stage",
        columns=[Column("what", "What"), Column("made_by", "Made by"), Column("sha256", "sha256"),
                 Column("used_by", "Used by"), Column("agrees", "The same there")],
        rows=rows,
        notes=["The first twelve digits; tables/identities.csv holds them whole."],
    )  # fmt: skip


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
