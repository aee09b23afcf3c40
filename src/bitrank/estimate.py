"""Memory before any weight is loaded: from `config.json` and the treatment alone.

The real architecture is built on torch's meta device, where a tensor has a shape and no bytes, with
the real adapter attached to it. One forward and backward pass over a micro-batch of the asked shape
then goes through the meter that measures, so what is kept for going back, what checkpointing drops
and computes anew, and which temporary tensors live beside each other at the peak is counted and not
modelled. What the meta device cannot run is modelled: quantized layers are stand-ins that hold what
their precision holds and make the temporary tensors that bitsandbytes makes; attention is the one
of torch's CPU kernels, which keeps one number a row and head as FlashAttention does; the state of
the optimizer is computed from the sizes of what is trained.

A prediction is of tensors, as `TensorMeter` counts them. A GPU's allocator rounds each up, and the
scratch memory of kernels and the CUDA context come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bitrank import adapters, batches, meters, models, stand_ins, steps, weights, workload
from bitrank.adapter_config import AdapterConfig, LoraAdapter, PrefixTuningAdapter
from bitrank.config import PrecisionConfig
from bitrank.errors import UserError
from bitrank.stand_ins import META
from bitrank.tuning import TrainConfig

DEFINITION = (
    "the same pass over a batch of the same shape, with the architecture of config.json on the "
    "meta device, where tensors have no bytes, through the same meter; quantized layers, attention "
    "and optimizer state are modelled: bytes of codes, block scales (a second time quantized or "
    "not) and code tables; AdamW's two moments and step count of each trained tensor; nothing is "
    "read from the run that is predicted but the shape of its batch; error = predicted / measured "
    "− 1"
)
LOADING = ("quantization_config", "dtype", "torch_dtype", "model_type", "architectures")
"""Settings of `config.json` that say how a checkpoint is held, not how the model is built."""
EIGHT_BIT_BLOCK, EIGHT_BIT_LEAST = 256, 4096
"""bitsandbytes' 8-bit AdamW: elements that share a scale, and the size below which it keeps 32."""


class PredictionError(UserError):
    """The meta device cannot run this combination; the message says which."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """All that a prediction needs to know of the rows."""

    rows: int
    columns: int
    """Tokens of the longest row."""
    first_target: int
    """The first column that has a target: logits are computed from the one before it on."""
    accumulated: bool
    """Whether gradients of an earlier micro-batch of the same step are there already."""

    @classmethod
    def of(cls, micro: Mapping[str, torch.Tensor], accumulated: bool) -> BatchShape:
        rows, columns = micro["labels"].shape
        first = batches.first_target(micro["labels"])
        return cls(rows=rows, columns=columns, first_target=first, accumulated=accumulated)


def predict_phases(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    shape: BatchShape,
) -> dict[str, dict[str, int]]:
    """Bytes at the peak of each phase, by part: `load`, `train`, `evaluate`, `merge`.

    `settings` are those of a `config.json`; `train` tells the optimizer and whether activations
    are kept, and not the batch. Takes seconds, some for each hundred layers.

    Raises:
        PredictionError: transformers does not know the model, or it cannot run on the meta device.
    """
    with told():
        model = build(settings, precision, adapter, train)
        trained = _predict_step(model, train, shape)
        found = {**_predict_others(model, precision, shape), "train": trained}
    return {phase: _with_peak(parts) for phase, parts in found.items()}


def predict_step(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    shape: BatchShape,
) -> dict[str, int]:
    """Bytes at the peak of a training step alone, by part; raises as `predict_phases`."""
    with told():
        model = build(settings, precision, adapter, train)
        return _with_peak(_predict_step(model, train, shape))


def predict_others(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    shape: BatchShape,
) -> dict[str, dict[str, int]]:
    """The phases beside `train`, without their peaks' sums; raises as `predict_phases`."""
    with told():
        model = build(settings, precision, adapter, train)
        return _predict_others(model, precision, shape)


def _predict_others(
    model: PreTrainedModel, precision: PrecisionConfig, shape: BatchShape
) -> dict[str, dict[str, int]]:
    """Loading, evaluation, and the merge where the method can be merged."""
    base_bytes = _bytes(_base_tensors(model))
    found = {
        "load": {"weights_bytes": base_bytes},
        "evaluate": _trace(model.eval(), shape, backward=False),
    }
    if adapters.method_of(model).not_merged is None:
        found["merge"] = _predict_merge(model, precision, base_bytes)
    return found


@contextmanager
def told() -> Iterator[None]:
    """What the meta device refuses is no fault of the program's."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise PredictionError(f"the meta device cannot run it: {reason[0]}") from error


def _with_peak(parts: Mapping[str, int]) -> dict[str, int]:
    return {"peak_bytes": sum(parts.values()), **parts}


def logits_bytes(settings: Mapping[str, Any], shape: BatchShape) -> int | None:
    """One copy of the logits in fp32; the loss and its gradient hold up to three more."""
    vocabulary = settings.get("vocab_size")
    positions = shape.columns - shape.first_target
    return None if vocabulary is None else 4 * shape.rows * positions * int(vocabulary)


def build(
    settings: Mapping[str, Any],
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
) -> adapters.Tuned:
    """The model that a run trains, on the meta device, in training mode."""
    if isinstance(adapter, LoraAdapter) and adapter.use_dora and precision.quant_type:
        raise PredictionError("DoRA of a quantized base reads the weights, which are not there")
    if isinstance(adapter, PrefixTuningAdapter):
        raise PredictionError("the attention over keys that are trained is not modelled")
    if "model_type" not in settings:
        raise PredictionError("config.json names no `model_type`")
    kept = {name: value for name, value in settings.items() if name not in LOADING}
    with META:
        base = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(settings["model_type"], **kept),
            dtype=getattr(torch, precision.weight_dtype),
            attn_implementation=models.ATTENTION,
        )
        models.frozen(base)
        if precision.quant_type is not None:
            for layer in weights.linear_layers(base).values():
                stand_ins.QuantizedLayer.take_the_place_of(layer, precision)
        model = adapters.attach_adapter(base, adapter, workload.SEED)
    if adapters.method_of(model).copies_results:
        for _, layer in adapters.adapted_layers(model):
            layer.get_base_layer().is_copied = True
    steps.keep_activations(base, train)
    return cast(PreTrainedModel, model.train())


def _trace(model: torch.nn.Module, shape: BatchShape, backward: bool) -> dict[str, int]:
    """Bytes by part at the peak of one pass over a micro-batch."""
    meter = stand_ins.MetaMeter()
    run_pass(model, shape, backward, meter)
    return {f"{part}_bytes": meter.peak_by_category[part] for part in workload.PARTS}


def run_pass(
    model: torch.nn.Module, shape: BatchShape, backward: bool, meter: stand_ins.MetaMeter
) -> None:
    """Send a micro-batch through a model on the meta device, under the eyes of `meter`."""
    names = ("input_ids", "attention_mask", "labels")
    batch = {name: torch.zeros(shape.rows, shape.columns, dtype=torch.int64, device=META)
             for name in names}  # fmt: skip
    trainable = [p for p in model.parameters() if p.requires_grad]
    workload.register_model(meter, model)
    meter.register(meters.REST, batch.values())
    if shape.accumulated and backward:
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
        meter.register("gradients", [cast(torch.Tensor, p.grad) for p in trainable])
    meter.watch_gradients(trainable)
    with torch.set_grad_enabled(backward), stand_ins.cpu_attention(), meter:
        loss = batches.loss_from(model, batch, shape.first_target, 1)
        if backward:
            torch.autograd.backward(loss)
    model.zero_grad()


def _predict_step(model: torch.nn.Module, train: TrainConfig, shape: BatchShape) -> dict[str, int]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return with_optimizer(_trace(model, shape, backward=True), trainable, train, shape)


def with_optimizer(
    passed: Mapping[str, int],
    trainable: list[torch.nn.Parameter],
    train: TrainConfig,
    shape: BatchShape,
) -> dict[str, int]:
    """The larger of two peaks: going back, and the optimizer's, when all gradients are there."""
    state = optimizer_bytes(trainable, train.optimizer)
    passing = {**passed, "optimizer_bytes": state}
    # torch's AdamW makes two temporary tensors of a parameter's size, one parameter after another.
    scratch = 2 * max(p.nbytes for p in trainable) if train.optimizer == "adamw" else 0
    batch_bytes = 3 * 8 * shape.rows * shape.columns
    stepping = {
        **passing,
        "gradients_bytes": sum(p.nbytes for p in trainable),
        meters.REST + "_bytes": scratch + batch_bytes,
    }
    return max(passing, stepping, key=lambda parts: sum(parts.values()))


def optimizer_bytes(trainable: list[torch.nn.Parameter], optimizer: str) -> int:
    """Bytes of the state that AdamW keeps in the configured form, paged out or not."""
    if optimizer == "adamw":  # two moments in the parameter's own type, a step count in fp32
        return sum(2 * p.nbytes + 4 for p in trainable)
    sizes = [p.numel() for p in trainable]
    if not optimizer.endswith("8bit"):
        return sum(2 * 4 * size for size in sizes)
    small = [size for size in sizes if size < EIGHT_BIT_LEAST]
    large = [size for size in sizes if size >= EIGHT_BIT_LEAST]
    tables = 2 * 4 * 256 if large else 0
    scales = sum(2 * 4 * -(-size // EIGHT_BIT_BLOCK) for size in large)
    return 2 * 4 * sum(small) + 2 * sum(large) + scales + tables


def _predict_merge(
    model: adapters.Tuned, precision: PrecisionConfig, base_bytes: int
) -> dict[str, int]:
    """Base and adapter stay beside the plain model that is made, and the largest layer's sum."""
    own = sum(held.nbytes for held in weights.adapter_tensors(model))
    base = cast(Any, model).get_base_model() if own else model
    layers = weights.linear_layers(base).values()
    dtype = getattr(torch, precision.weight_dtype)
    sizes = [layer.in_features * layer.out_features for layer in layers]
    # The codes of 4-bit layers stay: the layers are in reference cycles, so only the collector of
    # garbage frees them, and it need not run.
    inside = 0 if precision.block_size else sum(layer.weight.nbytes for layer in layers)
    method = adapters.method_of(model)
    # What a method makes is fp32; other types add an fp32 copy of the weight.
    copy = 0 if dtype == torch.float32 else 4
    making = [
        method.merge_bytes(layer) + copy * layer.in_features * layer.out_features
        for _, layer in adapters.adapted_layers(model)
        if method.merge_copies
    ]
    return {
        "weights_bytes": base_bytes,
        "adapter_bytes": own,
        "merged_bytes": base_bytes - inside + dtype.itemsize * sum(sizes) + max(making, default=0),
    }  # fmt: skip


def _base_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    own = {id(held) for held in weights.adapter_tensors(model)}
    base = cast(Any, model).get_base_model() if own else model
    return (held for held in meters.reachable_tensors(base) if id(held) not in own)


def _bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Of their storages, each counted once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
