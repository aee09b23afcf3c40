"""The `measure` stage: memory and speed of the step that trains, and speed of inference.

Apart from training, because a restored adapter says nothing about this machine and a training run
is not alone on it. Nothing here depends on the run's seeds: batches and adapter are drawn with a
fixed one. The metered step is no timed step, since metering slows it down. Memory is metered on
the widest micro-batch of all training rows, which sets the peak of a training run in whatever
order; speed is timed on full batches spread evenly over the lengths of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from time import process_time
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank import (
    adapters,
    chain,
    data,
    decoding,
    determinism,
    environment,
    meters,
    models,
    paths,
    records,
    steps,
    treatment,
    weights,
    workload,
)
from bitrank.config import (
    MeasureConfig,
    PrecisionConfig,
    RuntimeConfig,
)
from bitrank.errors import UserError
from bitrank.progress import Progress, progress
from bitrank.tuning import AdapterConfig, TrainConfig
from bitrank.workload import GlobalBatch, TrainStep

TRAIN_MEMORY = (
    "highest sum of the bytes of all live tensor storages during one optimizer step (forward, "
    "backward, clipping, AdamW) on the widest micro-batch of the training rows; the split is the "
    "one at that moment; activations are what is none of the others, batch and temporary results "
    "included; scratch memory inside kernels is not counted"
)
PROCESS_MEMORY = (
    "VmHWM of the process above its VmRSS after the imports, while the base is loaded and while "
    "the training steps run; freed heap that was not returned to the system counts"
)
MFU = (
    "achieved / ceiling; achieved = 4 (N t + H s): forward pass and gradient of the activations "
    "are 2 operations a weight and token each, a frozen weight has no gradient; N weights of the "
    "linear layers in the blocks, t non-padding tokens a second without the last one of each row, "
    "which predicts nothing, H weights of the output layer, s supervised tokens a second; full "
    "fine-tuning has that gradient too: 6 for 4; blocks below the lowest adapter are not gone back "
    "through: 2 for 4; adapter, attention scores and what checkpointing computes anew are left "
    "out; ceiling = the fastest square matrix product of one second on this machine, in the "
    "compute type"
)


def measure_training_and_inference(
    config: MeasureConfig,
    train: TrainConfig,
    adapter: AdapterConfig,
    precision: PrecisionConfig,
    runtime: RuntimeConfig,
    max_tokens: int,
    base_folder: Path = paths.QUANTIZED,
    prepared: Path = paths.PREPARED,
) -> records.Record:
    """Meter and time the step that trains, then inference; the stage has the device alone.

    Raises:
        UserError: the base was changed or is not held as configured, a target layer is unknown, an
            answer does not fit `max_tokens`, or `measure` asks for more tokens than the base has
            positions.
    """
    device = environment.prepare_runtime(runtime, precision)
    after_import = meters.process_memory()["resident_bytes"]
    source = chain.check_base(base_folder)
    with meters.ProcessMeter(after_import) as loading:
        base = weights.load_base(base_folder, precision, device)
    _check_positions(base, config, max_tokens)
    tokenizer = models.load_tokenizer(base_folder)
    rows = data.encode_split(paths.split("train", prepared), tokenizer, max_tokens)
    model = adapters.attach_adapter(base, adapter, workload.SEED)
    steps.keep_activations(base, train)
    drawn = workload.draw_batches(rows, train, tokenizer)
    parts = config.warmup_steps + config.steps + 3 + len(decoding.BATCHES)
    with progress("measure", parts, "parts") as shown:
        with meters.ProcessMeter(after_import) as training, determinism.watching() as seen:
            result, trained = _measure_training(TrainStep(model, train), drawn, config, shown)
        used = _compare_with_ceiling(base, model, trained["train_speed"], precision)
        shown.advance(done="matrix products")
        prompt = decoding.draw_prompt(rows, config.prompt_tokens, device)
        inference = _measure_inference(model, prompt, config, shown)
    memory = _describe_process(after_import, loading, training)
    return records.Record(
        stage="measure",
        treatment={
            **chain.name_inputs(source, prepared),
            **treatment.describe(model, precision, adapter),
            "determinism": determinism.describe(device, seen),
            "num_rows": len(rows),
            **_describe_setting(device, train),
            **vars(config),
        },
        result=result,
        observation={**trained, **used, "inference": inference, "process_memory": memory},
    )


def _describe_process(
    after_import: int | None, loading: meters.ProcessMeter, training: meters.ProcessMeter
) -> dict[str, Any]:
    return {
        "definition": PROCESS_MEMORY,
        "after_import_bytes": after_import,
        "load_peak_above_import_bytes": loading.peak_above_baseline,
        "peak_above_import_bytes": training.peak_above_baseline,
    }


def _describe_setting(device: torch.device, train: TrainConfig) -> dict[str, Any]:
    return {
        "micro_batch_size": train.micro_batch_size,
        "global_batch_size": train.global_batch_size,
        "optimizer": train.optimizer,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _check_positions(
    base: PreTrainedModel, config: MeasureConfig, max_sequence_tokens: int
) -> None:
    models.check_positions(base, max_sequence_tokens)
    room = getattr(base.config, "max_position_embeddings", None)
    wanted = config.prompt_tokens + decoding.WARMUP + config.decode_tokens
    if room is not None and wanted > room:
        raise UserError(
            f"`measure.prompt_tokens` and `measure.decode_tokens` need {wanted} positions with "
            f"{decoding.WARMUP} for the warm-up, the base has {room}: ask for less"
        )


def _measure_training(
    step: TrainStep, drawn: Sequence[GlobalBatch], config: MeasureConfig, shown: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (result, observation): warm-up, then the metered step, then the timed steps."""
    timed = [batch.to(step.device) for batch in workload.spread_evenly(drawn, config.steps)]
    widest = max(drawn, key=lambda batch: batch.widest).to(step.device)
    clock = meters.StepClock(config.warmup_steps, step.device)
    clock.start()
    for batch in islice(cycle(timed), config.warmup_steps):
        step(batch)
        clock.tick()
        shown.advance(done="warm-up step")
    memory, cuda = meter_memory(step, widest)
    shown.advance(done="metered step")
    used = process_time()
    clock.start()
    for batch in timed:
        step(batch)
        clock.tick()
        shown.advance(done="timed step")
    tokens, seconds = sum((batch.tokens for batch in timed), Counter[str]()), sum(clock.seconds)
    result = {
        "tokens_per_step": {name: count / len(timed) for name, count in tokens.items()},
        "train_memory": memory,
    }
    speed = {
        "tokens_per_second": tokens["non_padding"] / seconds,
        "padded_tokens_per_second": tokens["padded"] / seconds,
        "supervised_tokens_per_second": tokens["supervised"] / seconds,
        "rows_per_second": sum(batch.num_rows for batch in timed) / seconds,
        "step_seconds": clock.summary(),
        # Well below the threads on a CPU: the machine had something else to do, compare nothing.
        "cpu_seconds_per_second": (process_time() - used) / seconds,
    }
    return result, {"train_speed": speed, "cuda": cuda}


def meter_memory(
    step: TrainStep, batch: GlobalBatch
) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Tensor-accounted peak of one step with its split, and the peaks of CUDA, if it is there.

    The optimizer's state must exist: an earlier step makes it.
    """
    meter = meters.TensorMeter()
    named = step.model.named_parameters()
    meter.register("adapter", [held for name, held in named if weights.ADAPTER in name])
    meter.register("optimizer", meters.reachable_tensors(step.optimizer.state))
    meter.register("weights", meters.reachable_tensors(step.model))
    meter.register(meters.REST, meters.reachable_tensors(batch.micro))
    meter.watch_gradients(step.trainable)
    with meters.CudaMeter(step.device) as cuda, meter:
        step(batch)
    parts = ("weights", "adapter", "gradients", "optimizer", meters.REST)
    memory = {
        "definition": TRAIN_MEMORY,
        "peak_bytes": meter.peak_bytes,
        **{f"{part}_bytes": meter.peak_by_category[part] for part in parts},
        "metered_tokens": dict(batch.tokens),
    }
    return memory, cuda.peaks


def _count_operations(
    base: PreTrainedModel, model: torch.nn.Module, speed: dict[str, Any]
) -> float:
    """Operations a second, as `MFU` defines them."""
    live = adapters.describe_adapter(model)
    factor = 6 if live["method"] == "full" else 4
    lowest = min(live.get("blocks", []), default=0)
    blocks = 0
    for name, layer in weights.linear_layers(base).items():
        block = adapters.block_of(name)
        passed = block is None or block >= lowest
        blocks += (factor if passed else 2) * layer.in_features * layer.out_features
    head = factor * base.get_output_embeddings().weight.numel()
    read = speed["tokens_per_second"] - speed["rows_per_second"]
    return float(blocks * read + head * speed["supervised_tokens_per_second"])


def _compare_with_ceiling(
    base: PreTrainedModel,
    model: torch.nn.Module,
    speed: dict[str, Any],
    precision: PrecisionConfig,
) -> dict[str, Any]:
    achieved = _count_operations(base, model, speed)
    ceiling = meters.measure_ceiling(base.device, getattr(torch, precision.compute_dtype))
    return {
        "mfu": achieved / ceiling,
        "mfu_definition": MFU,
        "achieved_flops_per_second": achieved,
        "ceiling_flops_per_second": ceiling,
    }


def _measure_inference(
    model: torch.nn.Module, prompt: torch.Tensor, config: MeasureConfig, shown: Progress
) -> dict[str, Any]:
    """Base and adapter, not merged, in evaluation mode."""
    model.eval()
    prefill = decoding.time_prefill(model, prompt)
    shown.advance(done="prefill")
    inference = {"prefill": prefill}
    for name, batch in decoding.BATCHES.items():
        inference[name] = decoding.time_decoding(model, prompt, batch, config.decode_tokens)
        shown.advance(done=f"decoding, batch {batch}")
    return inference
