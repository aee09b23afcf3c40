"""What a run will take, before anything is loaded: memory by part, what fits, time and cost.

Bytes of tensors are traced (`estimate`, `multiplied`) and agree with the measured ones; what comes
on top of them on a device, and the share of its ceiling that a run reaches, are assumptions. They
are named as such wherever they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bitrank import estimate, multiplied
from bitrank.accelerators import GIB, Accelerator
from bitrank.adapter_config import FullAdapter
from bitrank.architectures import count_positions
from bitrank.config import RunConfig
from bitrank.errors import UserError
from bitrank.estimate import BatchShape
from bitrank.multiplied import StepMemory, Targets, Work

CONTEXT_BYTES = {"gpu": int(0.75 * GIB), "cpu": int(0.45 * GIB)}
"""Assumed: CUDA's context and libraries; a Python process after its imports."""
WASTE = {"gpu": 0.08, "cpu": 0.6}
"""Assumed: what the allocator loses, as a share of all tensors but the weights."""
ASSUMED_MFU = 0.4
"""Published: LoRA of 8B models in 16 bits reaches 39 to 43 % on A100 and H100."""
MOST = 2**16
"""Rows or tokens beyond which nobody asks."""
Verdict = Literal["yes", "perhaps", "no", "unknown"]
DEFINITIONS = {
    "tensors": "bytes of all tensors at the peak of a training step, traced on the meta device; "
    "measured runs of this project agree to the byte on a CPU; not measured on a GPU, for which "
    "quantized layers are taken to hold what bitsandbytes holds on a CPU",
    "trained": "adapter, gradients and the optimizer's state, at that peak",
    "assumed": "not predicted but assumed: on a GPU 0.75 GiB for CUDA's context and libraries, on "
    "a CPU 0.45 GiB for the process after its imports; and what the allocator loses, 8 % (GPU) or "
    "60 % (CPU) of all tensors but the weights",
    "fits": "yes: tensors and what is assumed fit; perhaps: the tensors alone do; no: not even "
    "they do, on rows of this length",
    "least": "the same step on rows of two tokens: what is needed whatever the rows are",
    "longest": "the most tokens in a row at this batch that fit with what is assumed, at most as "
    "many as the model has positions",
    "largest": "the most rows in a micro-batch at this length that fit with what is assumed",
    "merge": "tensors when the adapter is merged in memory, as the stage `merge` does",
    "evaluate": "tensors of a forward pass over a batch of this shape",
    "original": "the weights of the base before they are quantized, which `quantize` and "
    "`baseline` load, in the type in which the checkpoint holds them",
    "time": "operations (4 a weight and token for LoRA, 6 for full fine-tuning, attention, the "
    "adapter's 6, and a forward pass more with checkpointing) over the ceiling and the MFU; on a "
    "GPU and quantized weights also reading the codes and writing the weights on each way; data "
    "loading, evaluation and saving are not in it",
    "ceiling": "a GPU's is that of its data sheet (conf/plan/gpus.yaml), a CPU's is measured",
    "cost": "time times the price that was given; whoever asks knows the currency",
    "targets": "tokens of a row that are trained: logits are computed for no others",
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a device does in a second, and who says so."""

    flops_per_second: float
    bytes_per_second: float | None
    """None: moving weights is not counted apart."""
    mfu: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    label: str
    overrides: Sequence[str]
    rows: int
    columns: int
    phases: dict[str, dict[str, int]]
    """Bytes of tensors by part: `load`, `train`, `evaluate`, `merge`."""
    least_bytes: int
    assumed_bytes: int
    logits_bytes: int | None
    fits: Verdict
    longest: int | None
    largest: int | None
    smallest_gpu: str | None
    seconds_per_million: float | None
    work: Work

    @property
    def tensor_bytes(self) -> int:
        return self.phases["train"]["peak_bytes"]

    @property
    def needed_bytes(self) -> int:
        return self.tensor_bytes + self.assumed_bytes


@dataclass(frozen=True, kw_only=True)
class Unplanned:
    """What cannot be predicted, with the reason; it is not guessed."""

    label: str
    overrides: Sequence[str]
    reason: str


def plan_run(
    run: RunConfig,
    settings: Mapping[str, Any],
    device: Accelerator,
    gpus: Sequence[Accelerator],
    speed: Speed | None,
    targets: Targets,
    overrides: Sequence[str] = (),
) -> Plan | Unplanned:
    """Plan one configuration on one device."""
    label = name_run(run)
    rows, columns = run.train.micro_batch_size, _columns(run)
    try:
        step = multiplied.predict_steps(settings, run.precision, run.adapter, run.train, targets)
        phases = _predict_phases(run, settings, step)
    except UserError as error:
        return Unplanned(label=label, overrides=overrides, reason=str(error))
    train = phases["train"]
    assumed = assume_on_top(train, device.kind)

    def fits(rows: int, columns: int) -> bool:
        parts = step.predict(rows, columns)
        needed = parts["peak_bytes"] + assume_on_top(parts, device.kind)
        return device.memory_bytes is not None and needed <= device.memory_bytes

    positions = count_positions(settings) or MOST
    known = device.memory_bytes is not None
    needed_on_gpu = train["peak_bytes"] + assume_on_top(train, "gpu")
    holding = (g.name for g in gpus if needed_on_gpu <= (g.memory_bytes or 0))
    return Plan(
        label=label,
        overrides=overrides,
        rows=rows,
        columns=columns,
        phases=phases,
        least_bytes=step.predict(1, 2)["peak_bytes"],
        assumed_bytes=assumed,
        logits_bytes=estimate.logits_bytes(settings, step.shape(rows, columns)),
        fits=judge(train["peak_bytes"], assumed, device.memory_bytes),
        longest=find_most(lambda n: fits(rows, n), positions, least=2) if known else None,
        largest=find_most(lambda n: fits(n, columns), MOST) if known else None,
        smallest_gpu=next(holding, None),
        seconds_per_million=None if speed is None
        else 1e6 * seconds_per_token(run, step.work, speed, device, targets),
        work=step.work,
    )  # fmt: skip


def assume_on_top(parts: dict[str, int], kind: str) -> int:
    """Bytes that a device holds beside the tensors: an assumption, see `DEFINITIONS`."""
    moving = parts["peak_bytes"] - parts["weights_bytes"]
    return CONTEXT_BYTES[kind] + int(WASTE[kind] * moving)


def judge(tensors: int, assumed: int, memory: int | None) -> Verdict:
    if memory is None:
        return "unknown"
    if tensors + assumed <= memory:
        return "yes"
    return "perhaps" if tensors <= memory else "no"


def find_most(fits: Callable[[int], bool], most: int, least: int = 1) -> int:
    """The largest number that fits, at most `most`; 0 where `least` does not."""
    if not fits(least):
        return 0
    low, high = least, most + 1  # low fits, high is not known to
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def seconds_per_token(
    run: RunConfig, work: Work, speed: Speed, device: Accelerator, targets: Targets
) -> float:
    """See `DEFINITIONS["time"]`."""
    columns, rows = _columns(run), run.train.micro_batch_size
    share = (columns - targets.first_column(columns)) / columns
    full = run.adapter.method == "full"
    again = run.train.gradient_checkpointing
    linear = work.blocks * work.block
    attention = 2 * columns * work.width * work.blocks
    each_way = 6 if full else 4
    operations = each_way * (linear + share * work.head) + 3 * attention
    operations += 0 if full else 6 * work.blocks * work.trained
    operations += (2 * linear + attention) if again else 0
    seconds = operations / (speed.flops_per_second * speed.mfu)
    if run.precision.quant_type is None or speed.bytes_per_second is None:
        return seconds
    codes = 1.0 if run.precision.quant_type == "int8" else 0.516
    written = 4 if run.precision.compute_dtype == "float32" else 2
    moved = (3 if again else 2) * linear * (codes + written)
    return seconds + moved / speed.bytes_per_second / (rows * columns)


def name_run(run: RunConfig) -> str:
    """Such as "QLoRA nf4 r8 ckpt 4x512": rows by tokens of a micro-batch."""
    quantized = run.precision.quant_type is not None
    rank = getattr(run.adapter, "rank", None)
    method = str(run.adapter.method)
    names = {"lora": "LoRA", "full": "full"}
    shown = names.get(method, method)
    if getattr(run.adapter, "use_dora", False):
        shown = "DoRA"
    held = run.precision.quant_type or SHORT[run.precision.weight_dtype]
    words = [
        "Q" + shown if quantized and shown == "LoRA" else shown,
        held,
        *([f"r{rank}"] if rank is not None else []),
        *(["ckpt"] if run.train.gradient_checkpointing else []),
        *([run.train.optimizer] if run.train.optimizer != "adamw" else []),
        f"{run.train.micro_batch_size}x{_columns(run)}",
    ]
    return " ".join(words)


SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _columns(run: RunConfig) -> int:
    return run.data.max_sequence_tokens


def _predict_phases(
    run: RunConfig, settings: Mapping[str, Any], step: StepMemory
) -> dict[str, dict[str, int]]:
    rows, columns = run.train.micro_batch_size, _columns(run)
    shape = step.shape(rows, columns)
    treatment = run.precision, run.adapter, run.train
    others = multiplied.predict_others(settings, *treatment, shape)
    told = {name: {"peak_bytes": sum(parts.values()), **parts} for name, parts in others.items()}
    return {**told, "train": step.predict(rows, columns)}


def original_bytes(run: RunConfig, settings: Mapping[str, Any]) -> int:
    """Of the unquantized weights in the type in which the checkpoint holds them."""
    held = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    plain = replace(run.precision, quant_type=None, double_quant=False, block_size=None,
                    quant_storage=None, compute_dtype=run.precision.weight_dtype)  # fmt: skip
    smallest = BatchShape(rows=1, columns=2, first_target=1, accumulated=False)
    full = FullAdapter(method="full")
    others = multiplied.predict_others(settings, plain, full, run.train, smallest)
    elements = others["load"]["weights_bytes"] // ITEM_BYTES[plain.weight_dtype]
    return elements * ITEM_BYTES.get(str(held).removeprefix("torch."), 4)
