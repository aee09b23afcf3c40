"""A plan as a table of 100 columns, as sentences, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bitrank.accelerators import GIB, Accelerator
from bitrank.measured import Skipped
from bitrank.plan_checks import MEASURED_HERE, PUBLISHED_ELSEWHERE, Check, Published
from bitrank.planning import DEFINITIONS, Plan, Speed, Unplanned

MIB = 2**20
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")
HEADER = ("what", "weights", "trained", "activ.", "needed", "fits", "longest", "rows", "h/1M",
          "cost")  # fmt: skip


def unit_of(plans: Sequence[Plan]) -> tuple[str, int]:
    largest = max(plan.needed_bytes for plan in plans)
    return ("GiB", GIB) if largest >= GIB else ("MiB", MIB)


def table(
    plans: Sequence[Plan], price: float | None, device: Accelerator
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; columns that nothing is known for are left out."""
    name, unit = unit_of(plans)
    rows = []
    for plan in plans:
        train = plan.phases["train"]
        trained = sum(train[f"{part}_bytes"] for part in ("adapter", "gradients", "optimizer"))
        sizes = train["weights_bytes"], trained, train["activations_bytes"], plan.needed_bytes
        rows.append([
            plan.label if batch_of(plans) is None else f"{plan.label.rpartition(' ')[0]}",
            *(_size(value, unit) for value in sizes),
            plan.fits if device.memory_bytes is not None else plan.smallest_gpu or "none",
            _count(plan.longest),
            _count(plan.largest),
            _hours(plan.seconds_per_million),
            _cost(plan.seconds_per_million, price),
        ])  # fmt: skip
    header = [f"{HEADER[0]} ({name})", *HEADER[1:]]
    if device.memory_bytes is None:
        header[header.index("fits")] = "smallest GPU"
    kept = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def batch_of(plans: Sequence[Plan]) -> str | None:
    """Rows and tokens of the micro-batch, where all have the same."""
    found = {(plan.rows, plan.columns) for plan in plans}
    if len(found) > 1:
        return None
    ((rows, columns),) = found
    return f"{rows} x {columns:,}"


def sentences(
    plans: Sequence[Plan], unplanned: Sequence[Unplanned], device: Accelerator, original: int | None
) -> Iterator[str]:
    """What the table does not say, and what must not be overlooked."""
    for one in unplanned:
        yield f"not predicted: {one.label}: {one.reason}"
    if not plans:
        return
    memory = device.memory_bytes
    if memory is not None:
        fitting = [plan for plan in plans if plan.fits == "yes"]
        if fitting:
            least = min(fitting, key=lambda plan: plan.needed_bytes)
            told = f"the least needs {show(least.needed_bytes)}: {least.label}"
            yield f"{len(fitting)} of {len(plans)} fit; {told}"
        else:
            least = min(plans, key=lambda plan: plan.needed_bytes)
            fits = f"; the smallest GPU listed that does: {least.smallest_gpu or 'none'}"
            yield f"none fits; the least needs {show(least.needed_bytes)}: {least.label}{fits}"
    mergers = [plan for plan in plans if "merge" in plan.phases]
    if mergers:
        most = max(plan.phases["merge"]["peak_bytes"] for plan in mergers)
        least_merge = min(plan.phases["merge"]["peak_bytes"] for plan in mergers)
        yield (f"merging needs {_span(least_merge, most)} of tensors on the same device"
               + _beyond(least_merge, memory))  # fmt: skip
    if original is not None:
        yield f"the base before it is quantized takes {show(original)}{_beyond(original, memory)}"


def _span(least: int, most: int) -> str:
    return show(least) if least == most else f"{show(least)} to {show(most)}"


def _beyond(size: int, memory: int | None) -> str:
    return "" if memory is None or size <= memory else ", more than this device has"


def details(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """One configuration by part and phase."""
    rows = []
    for phase in ("load", "train", "evaluate", "merge"):
        found = plan.phases.get(phase)
        if found is None:
            continue
        parts = [_part(found, part) for part in (*PARTS, "merged")]
        rows.append([phase, *parts, show(found["peak_bytes"])])
    return ["phase", *PARTS, "merged", "tensors"], rows


def _part(found: Mapping[str, int], part: str) -> str:
    return show(found[f"{part}_bytes"]) if found.get(f"{part}_bytes") else "-"


def to_json(
    plans: Sequence[Plan],
    unplanned: Sequence[Unplanned],
    device: Accelerator,
    speed: Speed | None,
    price: float | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything, in bytes and seconds; null is unknown."""
    return {
        "schema_version": 1,
        **about,
        "price_per_hour": price,
        "device": vars(device),
        "speed": None if speed is None else vars(speed),
        "definitions": DEFINITIONS,
        "plans": [
            {**{name: value for name, value in vars(plan).items() if name != "work"},
             "tensor_bytes": plan.tensor_bytes, "needed_bytes": plan.needed_bytes,
             "cost_per_million_tokens": cost(plan.seconds_per_million, price),
             "work": vars(plan.work)}
            for plan in plans
        ],
        "not_predicted": [vars(one) for one in unplanned],
    }  # fmt: skip


def check_table(checks: Sequence[Check | Skipped]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [check.where, check.what, show(check.measured_bytes), show(check.predicted_bytes),
         f"{check.error:+.2%}"]
        for check in checks if isinstance(check, Check)
    ]  # fmt: skip
    return ["record", "what", "measured", "predicted", "error"], rows


def check_sentences(checks: Sequence[Check | Skipped]) -> Iterator[str]:
    for one in checks:
        if isinstance(one, Skipped):
            yield f"not compared: {one.where}: {one.reason}"
    errors = [check.error for check in checks if isinstance(check, Check)]
    if not errors:
        yield "no record to compare with: `dvc repro` measures"
        return
    worst = max(errors, key=abs)
    exact = sum(error == 0 for error in errors)
    count = f"{len(errors)} measured points, {exact} predicted to the byte"
    yield f"{count}; largest error {worst:+.2%}"
    yield MEASURED_HERE


def published_table(found: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [one.name, f"{one.published_bytes / 1e9:.1f}", f"{one.tensor_bytes / 1e9:.1f}",
         f"{one.needed_bytes / 1e9:.1f}", f"{one.off:+.0%}"]
        for one in found
    ]  # fmt: skip
    return ["published by others", "GB", "tensors", "needed", "off"], rows


def published_sentences(found: Sequence[Published]) -> Iterator[str]:
    yield PUBLISHED_ELSEWHERE
    for one in found:
        yield f"{one.name}: {one.source}; there: {one.differs}"


def show(value: float) -> str:
    """In GiB from one on, else in MiB."""
    return f"{value / GIB:,.2f} GiB" if value >= GIB else f"{value / MIB:,.1f} MiB"


def _size(value: int, unit: int) -> str:
    digits = 2 if unit == GIB and value < 1000 * GIB else 0
    return f"{value / unit:,.{digits}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}" if value else "none"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours = seconds / 3600
    return f"{hours:.3g}"


def cost(seconds: float | None, price: float | None) -> float | None:
    """Of these seconds, at a price an hour."""
    return None if seconds is None or price is None else seconds / 3600 * price


def _cost(seconds: float | None, price: float | None) -> str:
    found = cost(seconds, price)
    return "-" if found is None else f"{found:.3g}"
