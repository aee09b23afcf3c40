"""Memory by phase: loading, a training step, evaluation and merging, each metered on its own.

Three definitions stand beside each other, since none tells all. Tensor bytes are the same in every
run, and split by what holds them; CUDA's peaks are what a device must have; VmHWM is what the
process took of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank import adapters, batches, merging, meters, models, weights, workload
from bitrank.workload import GlobalBatch, TrainStep

LIVE = "highest sum of the bytes of all live tensor storages during "
DEFINITIONS = {
    "load": "bytes of all tensor storages that the loaded base holds: codes, block scales and code "
    "tables, embeddings, norms, buffers; files are read outside of torch's operations, so what "
    "loading takes for a moment shows in the memory of the process and of CUDA only",
    "train": LIVE + "one optimizer step (forward, backward, clipping, AdamW) on the widest "
    "micro-batch of the training rows; the split is the one at that moment; activations are what "
    "is none of the others, batch and temporary results included; scratch memory inside kernels "
    "is not counted",
    "evaluate": LIVE + "one forward pass in evaluation mode, without gradients, with the loss of "
    "the answers, over the widest micro-batch of the training rows; base and adapter as they are "
    "held: where `evaluate.dequantize` computes on dequantized weights, these take as much as the "
    "plain model in `merge`",
    "merge": LIVE + "the merge in memory: the base is loaded once more and dequantized, and the "
    "adapter's update added to each layer, base and adapter beside it, as the merged model is "
    "checked against them; merged is the plain model with what its making takes for a moment",
}
PROCESS = (
    "VmHWM of the process above its VmRSS after the imports, while the base is loaded (load), "
    "while the training steps run (train), during a forward pass in evaluation (evaluate) and "
    "during a merge (merge), one after another in one process; freed heap that was not returned to "
    "the system counts, so a later phase shows what an earlier one took; null where the platform "
    "does not tell"
)


class PhaseMeter:
    """Peaks of the process and of CUDA, phase by phase; null where the platform does not tell."""

    def __init__(self, device: torch.device, after_import: int | None) -> None:
        self._device, self._after_import = device, after_import
        self._process: dict[str, int | None] = {}
        self._cuda: dict[str, dict[str, int] | None] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with (
            meters.CudaMeter(self._device) as cuda,
            meters.ProcessMeter(self._after_import) as process,
        ):
            yield
        self._process[name], self._cuda[name] = process.peak_above_baseline, cuda.peaks

    def describe(self) -> dict[str, Any]:
        peaks = {f"{name}_peak_above_import_bytes": peak for name, peak in self._process.items()}
        return {
            "process_memory": {
                "definition": PROCESS,
                "after_import_bytes": self._after_import,
                **peaks,
            },
            "cuda": dict(self._cuda) if self._device.type == "cuda" else None,
        }


def meter_loaded(base: PreTrainedModel) -> dict[str, Any]:
    """Tensor bytes of a base, which is all that there is after loading."""
    meter = meters.TensorMeter()
    workload.register_model(meter, base)
    return _describe("load", meter.peak_by_category, ("weights",))


def meter_step(step: TrainStep, batch: GlobalBatch) -> dict[str, Any]:
    """Tensor bytes at the peak of one step. The optimizer's state must exist: a step makes it."""
    meter = meters.TensorMeter()
    workload.register_model(meter, step.model)
    meter.register("optimizer", meters.reachable_tensors(step.optimizer.state))
    meter.register(meters.REST, meters.reachable_tensors(batch.micro))
    meter.watch_gradients(step.trainable)
    with meter:
        step(batch)
    memory = _describe("train", meter.peak_by_category, workload.PARTS)
    return {**memory, "metered_tokens": dict(batch.tokens)}


def meter_evaluation(model: torch.nn.Module, micro: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Tensor bytes at the peak of a forward pass; leaves the model in evaluation mode."""
    meter = meters.TensorMeter()
    model.eval()
    workload.register_model(meter, model)
    meter.register(meters.REST, micro.values())
    with torch.no_grad(), meter:
        batches.supervised_loss(model, micro, 1)
    return _describe("evaluate", meter.peak_by_category, ("weights", "adapter", meters.REST))


def meter_merge(model: torch.nn.Module, base_folder: Path) -> dict[str, Any]:
    """Tensor bytes at the peak of merging the adapter of `model` into a copy of its base.

    Null, with the reason, for a method that is not merged.
    """
    why_not = adapters.method_of(model).not_merged
    if why_not is not None:
        parts = ("peak", "weights", "adapter", "merged")
        unknown = dict.fromkeys(f"{part}_bytes" for part in parts)
        return {"definition": DEFINITIONS["merge"], **unknown, "why_not": why_not}
    plain = models.load_model(base_folder, next(model.parameters()).device)
    meter = meters.TensorMeter()
    workload.register_model(meter, model)
    meter.register("merged", meters.reachable_tensors(plain))
    with meter:
        plain = weights.dequantize_model(plain)
        merging.add_updates(plain, model)
    peak = {**meter.peak_by_category}
    peak["merged"] = peak.get("merged", 0) + peak.get(meters.REST, 0)
    return _describe("merge", peak, ("weights", "adapter", "merged"))


def _describe(phase: str, peak: Mapping[str, int], parts: tuple[str, ...]) -> dict[str, Any]:
    held = {f"{part}_bytes": peak.get(part, 0) for part in parts}
    return {"definition": DEFINITIONS[phase], "peak_bytes": sum(held.values()), **held}


def beside_prediction(
    measured: Mapping[str, Any], predicted: Mapping[str, int] | None
) -> dict[str, Any]:
    """A measurement, its prediction, and predicted / measured - 1; null where there is none."""
    error, peak = None, measured["peak_bytes"]
    if predicted is not None and peak is not None:
        error = predicted["peak_bytes"] / peak - 1
    return {**measured, "predicted": predicted, "prediction_error": error}
