"""Whether the points of a sweep fit the device that they are to run on, before any of them starts.

Most do by far, which arithmetic tells at once; the others are traced, as `bitrank plan` does, which
needs torch and some seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bitrank import accelerators, config
from bitrank.accelerators import GIB, Accelerator
from bitrank.architectures import count_layers, find_architecture, read_settings
from bitrank.errors import UserError
from bitrank.grid import Point

FREE = 0.6
"""Share of a device below which a generous bound needs no second look."""
MERGING = 12
"""Bytes of fp32 that stand for a weight while a base is merged: itself, a copy, their sum."""
TRAINED = 24
"""Bytes a trained weight: itself, its gradient, two moments, two temporary tensors."""


@dataclass(frozen=True, kw_only=True)
class Misfit:
    key: str
    certain: bool
    """Whether it holds whatever the rows are, and whatever comes on top of the tensors."""
    reason: str


def find_misfits(points: Sequence[Point], project: Path = Path()) -> Iterator[Misfit]:
    """Those that will not fit, or may not; none where a device does not tell its memory."""
    known: dict[str, tuple[bool, str]] = {}
    for point in points:
        values = OmegaConf.to_container(OmegaConf.create(point.text), resolve=True)
        run = config.parse(values)
        device = find_device(run)
        memory = device.memory_bytes if device else None
        if device is None or memory is None:
            continue
        parts = run.model, run.precision, run.adapter, run.train, run.data.max_sequence_tokens
        same = repr(parts)
        if same not in known:
            known[same] = _judge(run, device, memory, project)
        certain, reason = known[same]
        if reason:
            yield Misfit(key=point.key, certain=certain, reason=reason)


def find_device(run: config.RunConfig) -> Accelerator | None:
    """What a run is to use of this machine."""
    if run.runtime.device == "cpu":
        return accelerators.this_cpu()
    return accelerators.this_gpu(accelerators.read_gpus())


def _judge(
    run: config.RunConfig, device: Accelerator, memory: int, project: Path
) -> tuple[bool, str]:
    try:
        settings = find_architecture(run.model, project=project).settings
    except UserError:
        return False, ""  # nothing is known of it before it is fetched
    bound = bound_bytes(run, settings)
    if bound is not None and bound <= FREE * memory:
        return False, ""
    return _trace(run, settings, device, memory)


def _trace(
    run: config.RunConfig, settings: Mapping[str, Any], device: Accelerator, memory: int
) -> tuple[bool, str]:
    from bitrank import planning
    from bitrank.multiplied import Targets

    found = planning.plan_run(run, settings, device, [], None, Targets(last=None))
    if isinstance(found, planning.Unplanned):
        return False, f"not predicted: {found.reason}"
    has = f"{device.name} has {memory / GIB:.1f} GiB"
    if found.least_bytes > memory:
        needed = f"{found.least_bytes / GIB:.1f} GiB of tensors"
        return True, f"a training step takes {needed} at the least, {has}"
    rows = f"on rows of {found.columns} tokens, all trained"
    if found.fits == "no":
        needed = f"{found.tensor_bytes / GIB:.1f} GiB of tensors"
        return False, f"a training step takes {needed} {rows}; {has}"
    if found.fits == "perhaps":
        needed = f"{found.needed_bytes / GIB:.1f} GiB with what is assumed beside the tensors"
        return False, f"a training step may need {needed}, {rows}; {has}"
    for phase in ("evaluate", "merge"):
        peak = found.phases.get(phase, {}).get("peak_bytes", 0)
        if peak > memory:
            return False, f"{phase} takes {peak / GIB:.1f} GiB of tensors; {has}"
    return False, ""


def bound_bytes(run: config.RunConfig, settings: Mapping[str, Any]) -> int | None:
    """More than any stage of this run holds, by arithmetic; None where the settings do not tell."""
    layers = count_layers(settings)
    hidden = read_settings(settings, ("hidden_size", "n_embd"))
    vocabulary = settings.get("vocab_size")
    if layers is None or hidden is None or vocabulary is None:
        return None
    inner = settings.get("intermediate_size") or 4 * hidden
    block = 4 * hidden * hidden + 3 * hidden * inner
    elements = layers * block + 2 * vocabulary * hidden
    rank = getattr(run.adapter, "rank", None)
    trained = elements if rank is None else layers * rank * (11 * hidden + 3 * inner)
    tokens = run.train.micro_batch_size * run.data.max_sequence_tokens
    a_token = 4 * (layers * (24 * hidden + 8 * inner) + 6 * vocabulary)
    return int(MERGING * elements + TRAINED * trained + tokens * a_token)
