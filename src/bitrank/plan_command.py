"""The command `bitrank plan`."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitrank import terminal
from bitrank.errors import UserError

if TYPE_CHECKING:
    from bitrank.accelerators import Accelerator
    from bitrank.config import RunConfig
    from bitrank.planning import Plan, Speed, Unplanned
    from bitrank.variants import Variant


def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="As for a sweep: model=llama31_8b precision=fp32,nf4 adapter.rank=8"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A GPU by name, such as 'RTX 4090'; or here.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Of a GPU, such as 24GiB.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of the device, an hour.")] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Share of the ceiling to assume.")
    ] = None,
    targets: Annotated[
        int | None, typer.Option(min=1, help="Trained tokens at the end of each row; else all.")
    ] = None,
    config_json: Annotated[
        Path | None, typer.Option("--config", help="A config.json to plan for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Hold predictions against all that was measured.")
    ] = False,
) -> None:
    """Tell what runs will take, before anything is loaded: memory, what fits, time and cost."""
    gc.freeze()  # what was imported is no garbage: each trace would look through all of it
    try:
        if check:
            _check(as_json)
        else:
            asked = Asked(overrides or [], device, memory, price, mfu, targets, config_json)
            _plan(asked, as_json)
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Asked:
    """The command's arguments."""

    overrides: list[str]
    device: str | None
    memory: str | None
    price: float | None
    mfu: float | None
    targets: int | None
    config_json: Path | None


def _plan(asked: Asked, as_json: bool) -> None:
    from bitrank import architectures, plan_tables, planning
    from bitrank.variants import list_variants

    chosen, gpus = _choose(asked.device, asked.memory, asked.overrides)
    variants = list_variants(asked.overrides, chosen)
    first = next(variant.run for variant in variants if variant.run is not None)
    known = architectures.find_architecture(first.model, asked.config_json)
    speed = _find_speed(chosen, first, asked.mfu)
    found = _plan_each(variants, asked, chosen, gpus, speed)
    plans = [one for one in found if isinstance(one, planning.Plan)]
    missing = [one for one in found if isinstance(one, planning.Unplanned)]
    original = planning.original_bytes(first, known.settings) if plans else None
    if as_json:
        about = {"model": first.model.name, "architecture": dict(vars(known)),
                 "targets": asked.targets, "original_bytes": original}  # fmt: skip
        body = plan_tables.to_json(plans, missing, chosen, speed, asked.price, about)
        print(json.dumps(body, indent=2))
        return
    _head(first, known.source, chosen, speed, asked.targets)
    if plans:
        batch = plan_tables.batch_of(plans)
        _say(f"rows x tokens of a micro-batch: {batch or 'the last words of each name'}")
        _show(*plan_tables.table(plans, asked.price, chosen))
        if len(plans) == 1:
            _show(*plan_tables.details(plans[0]))
    for sentence in plan_tables.sentences(plans, missing, chosen, original):
        _say(sentence)
    if not plans:
        raise UserError("nothing could be predicted")
    _legend(asked.price)


def _plan_each(
    variants: Sequence[Variant],
    asked: Asked,
    device: Accelerator,
    gpus: Sequence[Accelerator],
    speed: Speed | None,
) -> list[Plan | Unplanned]:
    from bitrank import architectures, planning
    from bitrank.multiplied import Targets
    from bitrank.progress import progress

    found: list[Plan | Unplanned] = []
    with progress("planning", len(variants), "configurations") as shown:
        for variant in variants:
            own = variant.overrides
            if variant.run is None:
                label = " ".join(own)
                found.append(planning.Unplanned(label=label, overrides=own, reason=variant.reason))
            else:
                known = architectures.find_architecture(variant.run.model, asked.config_json)
                found.append(planning.plan_run(
                    variant.run, known.settings, device, gpus, speed,
                    Targets(last=asked.targets), own,
                ))  # fmt: skip
            shown.advance()
    return found


def _choose(
    name: str | None, memory: str | None, overrides: list[str]
) -> tuple[Accelerator, list[Accelerator]]:
    from dataclasses import replace

    from bitrank import accelerators

    gpus = accelerators.read_gpus()
    on_gpu = "runtime.device=cuda" in overrides
    if name is not None and name != accelerators.HERE:
        chosen = accelerators.find_gpu(name, gpus)
    elif name is None and (memory is not None or on_gpu):
        chosen = (accelerators.this_gpu(gpus) if on_gpu and memory is None else None) or (
            accelerators.Accelerator(name="any GPU", kind="gpu", memory_bytes=None,
                                     flops_per_second=None, bytes_per_second=None,
                                     dtype="bfloat16"))  # fmt: skip
    else:
        gpu = accelerators.this_gpu(gpus) if on_gpu or name is not None else None
        chosen = gpu or accelerators.this_cpu()
    if memory is not None:
        size = accelerators.parse_size(memory)
        chosen = replace(chosen, memory_bytes=size)
    return chosen, gpus


def _find_speed(device: Accelerator, run: RunConfig, mfu: float | None) -> Speed | None:
    from bitrank import measured, planning

    reached = measured.find_reached(device, run.precision)
    share = mfu if mfu is not None else reached.mfu if reached else planning.ASSUMED_MFU
    if mfu is not None:
        told = f"MFU {mfu:.0%} as given"
    elif reached:
        span = f"{reached.lowest:.0%} to {reached.highest:.0%} in {reached.count} records"
        told = f"MFU {share:.0%}, measured on this device ({span})"
    else:
        told = f"MFU {share:.0%} assumed (published for 8B models on A100 and H100)"
    ceiling = reached.ceiling_flops_per_second if reached else device.flops_per_second
    if ceiling is None and device.kind == "cpu":
        import torch

        from bitrank import meters

        torch.set_num_threads(run.runtime.threads)
        ceiling = meters.measure_ceiling(torch.device("cpu"), torch.float32)
    if ceiling is None:
        return None
    whose = "measured" if reached or device.kind == "cpu" else "data sheet"
    source = f"ceiling {ceiling / 1e12:.3g} TFLOP/s ({whose}), {told}"
    moved = None if reached or device.kind == "cpu" else device.bytes_per_second
    return planning.Speed(flops_per_second=ceiling, bytes_per_second=moved, mfu=share,
                          source=source)  # fmt: skip


def _head(
    run: RunConfig, source: str, device: Accelerator, speed: Speed | None, targets: int | None
) -> None:
    from bitrank.plan_tables import show

    memory = "" if device.memory_bytes is None else f", {show(device.memory_bytes)}"
    _say(f"{run.model.name}, from {source}")
    _say(f"on {device.name}{memory}; computed in {run.precision.compute_dtype}")
    rows = "all but the first token" if targets is None else f"the last {targets} tokens"
    print(f"rows as long as `data.max_sequence_tokens`, {rows} of each trained")
    print(
        f"time: {speed.source}" if speed else "time: no ceiling is known of this device; --device"
    )


def _legend(price: float | None) -> None:
    from bitrank.planning import DEFINITIONS

    for name in ("trained", "tensors", "assumed", "fits", "longest", "largest", "time"):
        _say(f"{LEGEND.get(name, name)}: {DEFINITIONS[name]}")
    if price is not None:
        _say(f"cost: {DEFINITIONS['cost']}")


def _say(sentence: str) -> None:
    """A sentence, in a terminal broken between words; elsewhere one whole line."""
    if sys.stdout.isatty():
        width = min(100, shutil.get_terminal_size().columns)
        sentence = textwrap.fill(sentence, width, subsequent_indent="  ")
    print(sentence)


def _show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without frames, so that a terminal of 100 columns holds it."""
    if not sys.stdout.isatty():
        terminal.show_table(header, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        drawn.add_column(name, justify="right" if number else "left")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


LEGEND = {
    "tensors": "needed, first",
    "assumed": "needed, on top",
    "largest": "rows",
    "time": "h/1M",
}
"""What the table calls it, or how a sentence about it begins."""


def _check(as_json: bool) -> None:
    from bitrank import measured, plan_checks, plan_tables
    from bitrank.progress import progress

    jobs = plan_checks.list_jobs()
    checks: list[plan_checks.Check | measured.Skipped] = []
    with progress("predicting", len(jobs), "records") as shown:
        for where, job in jobs:
            checks += job()
            shown.advance(record=where)
    published = list(plan_checks.compare_published())
    if as_json:
        body = {
            "measured": [{**vars(one), "error": one.error} for one in checks
                         if isinstance(one, plan_checks.Check)],
            "not_compared": [vars(o) for o in checks if isinstance(o, measured.Skipped)],
            "published": [{**vars(one), "off": one.off} for one in published],
        }  # fmt: skip
        print(json.dumps(body, indent=2))
        return
    _show(*plan_tables.check_table(checks))
    for sentence in plan_tables.check_sentences(checks):
        _say(sentence)
    _show(*plan_tables.published_table(published))
    for sentence in plan_tables.published_sentences(published):
        _say(sentence)
