"""Speed of training: tokens and energy of timed steps, and the share of what the device can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from time import process_time
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank import adapters, energy, meters, weights
from bitrank.config import PrecisionConfig
from bitrank.progress import Progress
from bitrank.workload import GlobalBatch, TrainStep

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


def time_steps(step: TrainStep, timed: Sequence[GlobalBatch], shown: Progress) -> dict[str, Any]:
    """Run a step on each batch, and nothing else between them; the warm-up is the caller's."""
    clock = meters.StepClock(0, step.device)
    used = process_time()
    with energy.EnergyMeter(step.device) as taken:
        clock.start()
        for batch in timed:
            step(batch)
            clock.tick()
            shown.advance(done="timed step")
    tokens, seconds = sum((batch.tokens for batch in timed), Counter[str]()), sum(clock.seconds)
    joules = taken.joules
    thousands = tokens["non_padding"] / 1000
    return {
        "tokens_per_second": tokens["non_padding"] / seconds,
        "padded_tokens_per_second": tokens["padded"] / seconds,
        "supervised_tokens_per_second": tokens["supervised"] / seconds,
        "rows_per_second": sum(batch.num_rows for batch in timed) / seconds,
        "step_seconds": clock.summary(),
        # Well below the threads on a CPU: the machine had something else to do, compare nothing.
        "cpu_seconds_per_second": (process_time() - used) / seconds,
        "energy": {
            "definition": energy.DEFINITION,
            "joules": joules,
            "joules_per_thousand_tokens": None if joules is None else joules / thousands,
        },
    }


def compare_with_ceiling(
    base: PreTrainedModel,
    model: adapters.Tuned,
    trained: dict[str, Any],
    precision: PrecisionConfig,
) -> dict[str, Any]:
    """MFU of what `time_steps` told."""
    achieved = _count_operations(base, model, trained)
    ceiling = meters.measure_ceiling(base.device, getattr(torch, precision.compute_dtype))
    return {
        "mfu": achieved / ceiling,
        "mfu_definition": MFU,
        "achieved_flops_per_second": achieved,
        "ceiling_flops_per_second": ceiling,
    }


def _count_operations(
    base: PreTrainedModel, model: adapters.Tuned, trained: dict[str, Any]
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
    vectors = live.get("num_input_vectors", 0)  # which pass through the layers as tokens do
    read = trained["tokens_per_second"] + (vectors - 1) * trained["rows_per_second"]
    return float(blocks * read + head * trained["supervised_tokens_per_second"])
