"""Two-column tables: which values of the records are told, in which words.

Each fact names its value by the path inside the records, so that what is shown is what was
recorded; the CSV carries that path.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitrank.runs import Run
from bitrank.tables import Cell, Column, Kind, Table, look_up

COLUMNS = (Column("path", "What"), Column("value", "Value"))


@dataclass(frozen=True)
class Fact:
    label: str
    path: str
    """Stage, part and keys, joined by dots."""
    kind: Kind | None = None
    of_some: bool = False
    """LoRA has such a thing, and not every method: left out where another's record tells none."""


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
    Fact("steps planned", "train.treatment.planned_steps"),
    Fact("step at which training stopped", "train.treatment.num_steps"),
    Fact("rows in a step", "train.treatment.global_batch_size"),
    Fact("rows in a forward pass", "train.treatment.micro_batch_size"),
    Fact("optimizer", "train.treatment.optimizer.name"),
    Fact("learning rate", "train.treatment.optimizer.learning_rate"),
    Fact("schedule", "train.treatment.optimizer.schedule"),
    Fact("steps of warm-up", "train.treatment.optimizer.warmup_steps"),
    Fact("weight decay", "train.treatment.optimizer.weight_decay"),
    Fact("largest gradient norm", "train.treatment.optimizer.max_grad_norm"),
    Fact("seeds", "train.treatment.seeds"),
    Fact("early stopping", "train.treatment.early_stopping"),
    Fact("step whose weights are kept", "train.result.kept_step"),
    Fact("processes", "train.treatment.num_processes"),
    Fact("device", "train.treatment.device"),
    Fact("threads", "train.treatment.threads"),
    Fact("repeats to the same bytes", "train.treatment.determinism.deterministic"),
    Fact("why", "train.treatment.determinism.reason"),
)
ADAPTER = (
    Fact("method", "train.treatment.adapter.method"),
    Fact("rank", "train.treatment.adapter.rank", of_some=True),
    Fact("factor of the update", "train.treatment.adapter.scaling", of_some=True),
    Fact("DoRA", "train.treatment.adapter.use_dora", of_some=True),
    Fact("rsLoRA", "train.treatment.adapter.use_rslora", of_some=True),
    Fact("dropout", "train.treatment.adapter.dropout", of_some=True),
    Fact("adapted layers", "train.treatment.adapter.num_adapted_layers", of_some=True),
    Fact("their names", "train.treatment.adapter.target_modules", of_some=True),
    Fact("their blocks", "train.treatment.adapter.blocks", of_some=True),
    Fact("type of its weights", "train.treatment.adapter.dtypes"),
    Fact("type of the norms", "train.treatment.dtypes.norms"),
    Fact("type of the embeddings", "train.treatment.dtypes.embeddings"),
    Fact("type of the output layer", "train.treatment.dtypes.head"),
    Fact("attention", "train.treatment.attention"),
    Fact("trainable tensors", "train.treatment.trainable.num_tensors"),
    Fact("their names, without numbers", "train.treatment.trainable.names"),
    Fact("hash of all their names", "train.treatment.trainable.names_hash"),
    Fact("trainable parameters", "train.result.num_trainable_parameters"),
    Fact("share of all parameters", "train.result.trainable_share"),
    Fact("trainable outside the adapter", "train.treatment.adapter.trainable_outside_adapter",
         of_some=True),
    Fact("size on disk", "train.result.adapter_bytes"),
    Fact("gradient checkpointing", "train.treatment.gradient_checkpointing"),
    Fact("accumulated passes a step", "train.treatment.gradient_accumulation_steps"),
)  # fmt: skip
OTHER_METHODS = (
    Fact("stored as", "train.treatment.adapter.stored_as", of_some=True),
    Fact("layers whose inputs are scaled", "train.treatment.adapter.scaled_inputs", of_some=True),
    Fact("frozen shared weights", "train.treatment.adapter.num_frozen_shared", of_some=True),
    Fact("first factor of the ranks", "train.treatment.adapter.first_factor", of_some=True),
    Fact("inputs rotated together", "train.treatment.adapter.block_size", of_some=True),
    Fact("width of the bottleneck", "train.treatment.adapter.size", of_some=True),
    Fact("its bend", "train.treatment.adapter.activation", of_some=True),
    Fact("vectors before each row", "train.treatment.adapter.num_virtual_tokens", of_some=True),
    Fact("what they begin as", "train.treatment.adapter.first_tokens", of_some=True),
    Fact(
        "width of the network that makes them", "train.treatment.adapter.hidden_size", of_some=True
    ),
)
_PROCESS = "measure.observation.process_memory"
PROCESS_MEMORY = (
    Fact("after the imports", f"{_PROCESS}.after_import_bytes"),
    Fact("peak above that, loading", f"{_PROCESS}.load_peak_above_import_bytes"),
    Fact("peak above that, training", f"{_PROCESS}.train_peak_above_import_bytes"),
    Fact("peak above that, evaluating", f"{_PROCESS}.evaluate_peak_above_import_bytes"),
    Fact("peak above that, merging", f"{_PROCESS}.merge_peak_above_import_bytes"),
    Fact("definition", f"{_PROCESS}.definition"),
)
_PHASES = {"load": "loading", "train": "a training step", "evaluate": "evaluating",
           "merge": "merging"}  # fmt: skip
CUDA_MEMORY = tuple(
    Fact(f"CUDA, {label}: {what}", f"measure.observation.cuda.{phase}.{key}")
    for phase, label in _PHASES.items()
    for what, key in (
        ("peak allocated", "peak_allocated_bytes"),
        ("peak reserved", "peak_reserved_bytes"),
        ("device used", "device_used_bytes"),
    )
)
_OF_A_PHASE: tuple[tuple[str, str, Kind], ...] = (
    ("peak", "peak_bytes", "bytes"),
    ("predicted", "predicted.peak_bytes", "bytes"),
    ("error of the prediction", "prediction_error", "share"),
)
PHASE_MEMORY = (
    *(
        Fact(f"{label}: {what}", f"measure.result.{phase}_memory.{key}", kind, phase == "merge")
        for phase, label in _PHASES.items()
        for what, key, kind in _OF_A_PHASE
    ),
    *(
        Fact(f"{label}: definition", f"measure.result.{phase}_memory.definition")
        for phase, label in _PHASES.items()
    ),
    Fact("prediction: definition", "measure.result.prediction.definition"),
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
    Fact("rows in a step", "measure.treatment.global_batch_size"),
    Fact("rows in a forward pass", "measure.treatment.micro_batch_size"),
    Fact("tokens in a step", "measure.result.tokens_per_step"),
    Fact("energy", f"{_SPEED}.energy.joules"),
    Fact("joules for 1,000 tokens", f"{_SPEED}.energy.joules_per_thousand_tokens"),
    Fact("energy: definition", f"{_SPEED}.energy.definition"),
    Fact("share of the ceiling (MFU)", "measure.observation.mfu", "share"),
    Fact("MFU: definition", "measure.observation.mfu_definition"),
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
    Fact("the update is added to", "merge.treatment.base", of_some=True),
    Fact("type of the weights", "merge.treatment.dtype"),
    Fact("size", "merge.result.size_bytes"),
    Fact("merged layers", "merge.result.num_merged_layers"),
    Fact("compared with", "merge.treatment.compared_with"),
    Fact("prompts compared", "merge.result.check.num_items"),
    Fact("largest logit difference", "merge.result.check.largest_logit_difference"),
    Fact("mean KL (nats)", "merge.result.check.mean_kl"),
    Fact("same most likely token", "merge.result.check.argmax_agreement", "share"),
)
_STEP = "fidelity.result.update_to_step"
UPDATE = (
    Fact("update over step, the layer in the middle", f"{_STEP}.median", of_some=True),
    Fact("update over step, smallest", f"{_STEP}.smallest", of_some=True),
    Fact("update over step, largest", f"{_STEP}.largest", of_some=True),
    Fact("update: definition", "fidelity.treatment.update_definition"),
    Fact("step: definition", "fidelity.treatment.step_definition"),
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
        if fact.of_some and run.method != "lora" and run.find(stage, *keys) is None:
            continue
        rows.append([Cell(fact.label, fact.path), look_up(run, stage, *keys, kind=fact.kind)])
    return Table(name=name, title=title, columns=COLUMNS, rows=rows)


def inference_facts(run: Run) -> tuple[Fact, ...]:
    """What was measured of prefill and decoding, for each number of sequences at once; or why not.

    A precision without a kernel on the machine has no speed of inference to tell.
    """
    entries = run.find("measure", "observation", "inference") or {}
    if entries.get("why_not"):
        return (Fact("inference is not timed, because", f"{_INFERENCE}.why_not"),)
    return tuple(
        fact
        for key, entry in entries.items()
        if entry is not None
        for name in [f"{key.partition('_')[0]}, {entry['batch']} at once"]
        for fact in (
            Fact(name, f"{_INFERENCE}.{key}.tokens_per_second"),
            Fact(f"{name}: median", f"{_INFERENCE}.{key}.step_seconds.median", "seconds"),
            Fact(f"{name}: tokens in a prompt", f"{_INFERENCE}.{key}.prompt_tokens"),
        )
    )
