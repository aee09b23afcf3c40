"""The `measure` stage: memory by phase, speed of the step that trains, and speed of inference.

Apart from training, because a restored adapter says nothing about this machine and a training run
is not alone on it. Nothing here depends on the run's seeds: batches and adapter are drawn with a
fixed one. The metered step is no timed step, since metering slows it down. Memory is metered on
the widest micro-batch of all training rows, which sets the peak of a training run in whatever
order; speed is timed on full batches spread evenly over the lengths of the rows. What memory was
predicted before anything was loaded stands beside each measurement.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
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
    estimate,
    meters,
    models,
    paths,
    phases,
    records,
    speed,
    steps,
    treatment,
    weights,
    workload,
)
from bitrank.adapter_config import AdapterConfig
from bitrank.config import MeasureConfig, PrecisionConfig, RuntimeConfig
from bitrank.decoding import BATCHES
from bitrank.errors import UserError
from bitrank.estimate import BatchShape
from bitrank.progress import Progress, progress
from bitrank.prompts import Encoded
from bitrank.tuning import TrainConfig
from bitrank.workload import GlobalBatch, TrainStep

UNTIMED = ("metered step", "matrix products", "evaluation", "merge")


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
            answer does not fit `max_tokens`, or `measure` more tokens than the base has positions.
    """
    device = environment.prepare_runtime(runtime, precision)
    phase = phases.PhaseMeter(device, meters.process_memory()["resident_bytes"])
    source = chain.check_base(base_folder)
    with phase.phase("load"):
        base = weights.load_base(base_folder, precision, device)
    _check_positions(base, config, max_tokens)
    tokenizer = models.load_tokenizer(base_folder)
    rows = data.encode_split(paths.split("train", prepared), tokenizer, max_tokens)
    metered = {"load": phases.meter_loaded(base)}
    model = adapters.attach_adapter(base, adapter, workload.SEED)
    steps.keep_activations(base, train)
    drawn = workload.draw_batches(rows, train, tokenizer)
    widest = workload.find_widest(drawn).to(device)
    parts = config.warmup_steps + config.steps + len(UNTIMED) + len(BATCHES)
    with progress("measure", parts, "parts") as shown:
        with phase.phase("train"), determinism.watching() as seen:
            metered["train"], tokens, trained = _measure_steps(model, train, drawn, config, shown)
        used = speed.compare_with_ceiling(base, model, trained, precision)
        shown.advance(done="matrix products")
        metered |= _meter_use(model, widest, base_folder, phase, shown)
        inference = _time_inference(base, model, rows, config, shown)
    compared = _predict(metered, base_folder, precision, adapter, train, widest)
    return records.Record(
        stage="measure",
        treatment={
            **chain.name_inputs(source, prepared),
            **treatment.describe(model, precision, adapter),
            "determinism": determinism.describe(device, seen),
            "num_rows": len(rows),
            **_describe_setting(device, train, config),
        },
        result={"tokens_per_step": tokens, **compared},
        observation={"train_speed": trained, **used, "inference": inference, **phase.describe()},
    )


def _meter_use(
    model: torch.nn.Module,
    batch: GlobalBatch,
    base_folder: Path,
    phase: phases.PhaseMeter,
    shown: Progress,
) -> dict[str, dict[str, Any]]:
    """Memory of evaluating and merging the model; leaves it in evaluation mode."""
    with phase.phase("evaluate"):
        evaluating = phases.meter_evaluation(model, batch.widest_micro)
    shown.advance(done="evaluation")
    with phase.phase("merge"):
        merging = phases.meter_merge(model, base_folder)
    shown.advance(done="merge")
    return {"evaluate": evaluating, "merge": merging}


def _time_inference(
    base: PreTrainedModel,
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    config: MeasureConfig,
    shown: Progress,
) -> dict[str, Any]:
    """Base and adapter, not merged; null, with the reason, where their precision has no kernel."""
    why_not = weights.missing_kernel(base)
    if why_not is not None:
        shown.advance(len(BATCHES), done="no inference")
        return {**dict.fromkeys(BATCHES), "why_not": why_not}
    prompt = decoding.draw_prompt(rows, config.prompt_tokens, base.device)
    found = decoding.time_inference(model, prompt, config.decode_tokens, shown)
    return {**found, "why_not": None}


def _predict(
    metered: dict[str, dict[str, Any]],
    base_folder: Path,
    precision: PrecisionConfig,
    adapter: AdapterConfig,
    train: TrainConfig,
    widest: GlobalBatch,
) -> dict[str, Any]:
    """Each phase's memory, with what was to be expected of it; a reason where nothing was."""
    shape = BatchShape.of(widest.widest_micro, widest.widest_micro is not widest.micro[0])
    settings = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    predicted: dict[str, dict[str, int]] = {}
    reason = None
    try:
        predicted = estimate.predict_phases(settings, precision, adapter, train, shape)
    except estimate.PredictionError as error:
        reason = str(error)
    told = {
        "definition": estimate.DEFINITION,
        "why_not": reason,
        "batch": vars(shape),
        "logits_bytes": estimate.logits_bytes(settings, shape),
    }
    return {
        **{
            f"{name}_memory": phases.beside_prediction(memory, predicted.get(name))
            for name, memory in metered.items()
        },
        "prediction": told,
    }


def _describe_setting(
    device: torch.device, train: TrainConfig, config: MeasureConfig
) -> dict[str, Any]:
    return {
        "micro_batch_size": train.micro_batch_size,
        "global_batch_size": train.global_batch_size,
        "optimizer": train.optimizer,
        "device": device.type,
        "threads": torch.get_num_threads(),
        **vars(config),
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


def _measure_steps(
    model: torch.nn.Module,
    train: TrainConfig,
    drawn: Sequence[GlobalBatch],
    config: MeasureConfig,
    shown: Progress,
) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Return (memory, tokens in a step, speed): warm-up, then the metered step, then the timed."""
    step = TrainStep(model, train)  # its optimizer goes when this returns
    timed = [batch.to(step.device) for batch in workload.spread_evenly(drawn, config.steps)]
    for batch in islice(cycle(timed), config.warmup_steps):
        step(batch)
        shown.advance(done="warm-up step")
    memory = phases.meter_step(step, workload.find_widest(drawn).to(step.device))
    shown.advance(done="metered step")
    tokens = sum((batch.tokens for batch in timed), Counter[str]())
    per_step = {name: count / len(timed) for name, count in tokens.items()}
    return memory, per_step, speed.time_steps(step, timed, shown)
