"""Two-column tables: which values of the records are told, in which words.

Each fact names its value by the path inside the records, so that what is shown is what was
recorded; the CSV carries that path. The proof of treatment, the chain of identities and the
environment compare one value over several records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitrank import paths, records
from bitrank.runs import STAGES, Run
from bitrank.tables import (
    MISSING,
    NOT_APPLICABLE,
    UNKNOWN,
    Cell,
    Column,
    Kind,
    Table,
    format_value,
    look_up,
    show,
    text,
)

COLUMNS = (Column("path", "What"), Column("value", "Value"))
LONG_LIST = 8
"""Lists of mappings longer than this, such as losses, have tables or figures of their own."""


@dataclass(frozen=True)
class Fact:
    label: str
    path: str
    """Stage, part and keys, joined by dots."""
    kind: Kind | None = None


ASKED = (
    Fact("model", "fetch.treatment.name"),
    Fact("where the weights come from", "fetch.treatment.provenance"),
    Fact("parameters", "fetch.result.num_parameters"),
    Fact("license", "fetch.treatment.license"),
    Fact("data", "prepare.treatment.name"),
    Fact("prompt", "prepare.treatment.prompt"),
    Fact("answer", "prepare.treatment.answer"),
    Fact("rows trained on", "train.treatment.num_rows"),
    Fact("choices", "prepare.result.num_choices"),
    Fact("epochs", "train.treatment.epochs"),
    Fact("steps", "train.treatment.num_steps"),
    Fact("rows in a step", "train.treatment.global_batch_size"),
    Fact("rows in a forward pass", "train.treatment.micro_batch_size"),
    Fact("optimizer", "train.treatment.optimizer"),
    Fact("seeds", "train.treatment.seeds"),
    Fact("device", "train.treatment.device"),
    Fact("threads", "train.treatment.threads"),
)
ADAPTER = (
    Fact("rank", "train.treatment.adapter.rank"),
    Fact("scaling (alpha / rank)", "train.treatment.adapter.scaling"),
    Fact("dropout", "train.treatment.adapter.dropout"),
    Fact("adapted layers", "train.treatment.adapter.num_adapted_layers"),
    Fact("their names", "train.treatment.adapter.target_modules"),
    Fact("type of its weights", "train.treatment.adapter.dtypes"),
    Fact("trainable parameters", "train.result.num_trainable_parameters"),
    Fact("share of all parameters", "train.result.trainable_share"),
    Fact("trainable outside the adapter", "train.treatment.adapter.trainable_outside_adapter"),
    Fact("size on disk", "train.result.adapter_bytes"),
    Fact("gradient checkpointing", "train.treatment.gradient_checkpointing"),
    Fact("accumulated passes a step", "train.treatment.gradient_accumulation_steps"),
)
PROCESS_MEMORY = (
    Fact(
        "process: peak above import", "measure.observation.process_memory.peak_above_import_bytes"
    ),
    Fact("process: after import", "measure.observation.process_memory.after_import_bytes"),
    Fact("process: definition", "measure.observation.process_memory.definition"),
)
CUDA_MEMORY = (
    Fact("CUDA: peak allocated", "measure.observation.cuda.peak_allocated_bytes"),
    Fact("CUDA: peak reserved", "measure.observation.cuda.peak_reserved_bytes"),
    Fact("CUDA: device used", "measure.observation.cuda.device_used_bytes"),
)
_SPEED, _INFERENCE = "measure.observation.train_speed", "measure.observation.inference"
SPEED = (
    Fact("training, without padding", f"{_SPEED}.tokens_per_second"),
    Fact("training, with padding", f"{_SPEED}.padded_tokens_per_second"),
    Fact("training, supervised tokens", f"{_SPEED}.supervised_tokens_per_second"),
    Fact("step, median", f"{_SPEED}.step_seconds.median", "seconds"),
    Fact("step, 10th percentile", f"{_SPEED}.step_seconds.p10", "seconds"),
    Fact("step, 90th percentile", f"{_SPEED}.step_seconds.p90", "seconds"),
    Fact("timed steps", "measure.treatment.steps"),
    Fact("steps before the clock", "measure.treatment.warmup_steps"),
    Fact("rows in a step", "measure.treatment.micro_batch_size"),
    Fact("tokens in a step", "measure.result.tokens_per_step"),
    Fact("prefill", f"{_INFERENCE}.prefill.tokens_per_second"),
    Fact("prefill: prompts at once", f"{_INFERENCE}.prefill.batch"),
    Fact("prefill: tokens in a prompt", f"{_INFERENCE}.prefill.prompt_tokens"),
    Fact("prefill, median", f"{_INFERENCE}.prefill.seconds_median", "seconds"),
    Fact("decode", f"{_INFERENCE}.decode.tokens_per_second"),
    Fact("decode: sequences at once", f"{_INFERENCE}.decode.batch"),
)
TRAINING = (
    Fact("training time", "train.observation.train_seconds"),
    Fact("tokens seen", "train.result.tokens"),
)
QUANTIZATION = (
    Fact("size before", "quantize.result.original_size_bytes"),
    Fact("size after", "quantize.result.size_bytes"),
    Fact("bits a quantized weight", "quantize.result.bits_per_quantized_weight"),
    Fact("relative error (Frobenius norm)", "quantize.result.relative_error"),
)
MERGE = (
    Fact("the update is added to", "merge.treatment.base"),
    Fact("type of the weights", "merge.treatment.dtype"),
    Fact("size", "merge.result.size_bytes"),
    Fact("merged layers", "merge.result.num_merged_layers"),
    Fact("prompts compared", "merge.result.check.num_items"),
    Fact("largest logit difference", "merge.result.check.largest_logit_difference"),
    Fact("mean KL (nats)", "merge.result.check.mean_kl"),
    Fact("same most likely token", "merge.result.check.argmax_agreement", "share"),
)
AUDIT = (
    Fact("rows read", "prepare.result.num_rows_read"),
    Fact("duplicates removed", "prepare.result.num_duplicates_removed"),
    Fact("conflicting rows removed", "prepare.result.num_conflicts_removed"),
    Fact("groups", "prepare.result.num_groups"),
    Fact("rows for training", "prepare.result.splits.train.num_rows"),
    Fact("rows for validation", "prepare.result.splits.validation.num_rows"),
    Fact("rows for test", "prepare.result.splits.test.num_rows"),
    Fact("choices of one token", "prepare.result.num_one_token_choices"),
    Fact("audited rows", "prepare.result.audit.num_rows"),
    Fact("audited tokens", "prepare.result.audit.num_tokens"),
    Fact("trained tokens", "prepare.result.audit.num_supervised_tokens"),
    Fact("their share", "prepare.result.audit.supervised_share"),
    Fact("truncated rows", "prepare.result.audit.num_truncated"),
    Fact("longest row (tokens)", "prepare.result.audit.longest_tokens"),
    Fact("rows with a doubled start token", "prepare.result.audit.num_doubled_bos"),
    Fact("rows with an untrained end token", "prepare.result.audit.num_untrained_end"),
)


def facts_table(run: Run, name: str, title: str, facts: tuple[Fact, ...]) -> Table:
    rows = []
    for fact in facts:
        stage, *keys = fact.path.split(".")
        rows.append([Cell(fact.label, fact.path), look_up(run, stage, *keys, kind=fact.kind)])
    return Table(name=name, title=title, columns=COLUMNS, rows=rows)


_HELD = (
    "quant_types", "block_sizes", "double_quant", "compute_dtypes", "stored_elements_by_dtype",
)  # fmt: skip


def treatment_table(run: Run) -> Table:
    """How each stage's live model held its weights."""
    rows = []
    for stage in ("quantize", "train", "measure", *(f"evaluate-{s}" for s in paths.SUBJECTS)):
        live = live_precision(run, stage)
        if live is None:
            rows.append([text(stage), *[Cell(UNKNOWN if stage in run.records else MISSING)] * 7])
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
    """What `models.describe_precision` saw in the stage's live model; null where not recorded."""
    for keys in (("precision", "live"), ("live",), ("precision",)):
        found = run.find(stage, "treatment", *keys)
        if isinstance(found, Mapping) and "num_linear_layers" in found:
            return found
    return None


def links(run: Run) -> list[tuple[str, str, Any, str, Any]]:
    """(what, made by, its hash, used by, the hash named there) of each hand-over of the run."""
    merge_base = run.find("merge", "treatment", "base")
    added_to = "fetch" if merge_base == "original" else "quantize"
    chain = [
        ("original base", "fetch", "base_hash", ("quantize", "evaluate-original")),
        ("quantized base", "quantize", "base_hash",
         ("train", "measure", "evaluate-quantized", "evaluate-adapter")),
        ("base of the merge", added_to, "base_hash", ("merge",)),
        ("rows", "prepare", "data_hash", ("train", "control")),
        ("adapter", "train", "adapter_hash", ("merge", "evaluate-adapter")),
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
        agrees = UNKNOWN if made is None or named is None else format_value(made == named)
        shown = look_up(run, maker, "result", "x") if made is None else show(made, "hash")
        rows.append([text(what), text(maker), shown, text(user), text(agrees)])
    return Table(
        name="identities",
        title="What was handed from stage to stage",
        columns=[Column("what", "What"), Column("made_by", "Made by"), Column("sha256", "sha256"),
                 Column("used_by", "Used by"), Column("agrees", "The same there")],
        rows=rows,
        notes=["The first twelve digits; tables/identities.csv holds them whole."],
    )  # fmt: skip


def environment_table(run: Run) -> Table:
    """Versions, hardware and commit; a value that differs between stages names them."""
    seen: dict[str, dict[str, list[str]]] = {}
    for stage in STAGES:
        environment = run.find(stage, "observation", "environment") or {}
        for key, value in flatten(environment):
            seen.setdefault(key, {}).setdefault(_show_environment(key, value), []).append(stage)
    rows = []
    for key, values in seen.items():
        shown = [v if len(values) == 1 else f"{v} ({', '.join(s)})" for v, s in values.items()]
        rows.append([text(key), text("; ".join(shown))])
    return Table(
        name="environment", title="Versions, hardware and commit", columns=COLUMNS, rows=rows
    )


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


def _show_environment(key: str, value: Any) -> str:
    return format_value(value, "bytes" if key.endswith("_bytes") else "plain")
