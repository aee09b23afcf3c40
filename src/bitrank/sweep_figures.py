"""The figures of what a sweep's configurations are worth over the memory that they take.

Captions tell definition, unit, noise and hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bitrank.charts import Dot, draw_dots
from bitrank.evidence import METRICS, peak_of
from bitrank.run_tables import MAJORITY
from bitrank.runs import CONTROL, TASK
from bitrank.study import Study
from bitrank.sweep_places import Drawn, Place, ends_of, gather, label_of, places_of, series_of
from bitrank.sweep_tables import estimate_cell, over_seeds
from bitrank.tables import Column, Table, format_value, show, text

QUALITY = {"acc": "accuracy", "nll": "NLL (nats)"}
MEANT = {
    "acc": "Accuracy on the trained task: share of the test items whose right answer is the most "
    "probable of the choices",
    "nll": "NLL on the trained task: −log p of the right answer, in nats, mean over the test items",
}
WIDE = 2.5
"""Ratio of the most memory to the least from which the axis is logarithmic."""
MEMORY = f"Memory: {METRICS['train_peak_bytes']}"


def trade_off(study: Study) -> Drawn:
    """Accuracy and NLL over memory, with the Pareto front."""
    return gather(study, _trade_off)


def _trade_off(place: Place) -> Drawn:
    figures, absent = [], []
    for metric, axis in QUALITY.items():
        dots, without = _dots_over_memory(place, metric)
        if len(dots) < 2:
            absent.append(
                f"No figure of {axis} over memory on {place.setting}: it takes two "
                f"configurations of which both are known, and there is {len(dots) or 'none'}."
            )
            continue
        front = _front([(dot.x, dot.y) for dot in dots], less_is_better=metric == "nll")
        drawn = [replace(dot, is_front=(dot.x, dot.y) in front) for dot in dots]
        levels = _control_levels(place) if metric == "acc" else {}
        near = {name: level for name, level in levels.items() if _is_near(level, dots)}
        is_wide = max(dot.x for dot in dots) > WIDE * min(dot.x for dot in dots)
        drawing = draw_dots(
            drawn, place.series, "peak memory of a training step (MiB)", axis,
            front=front, log_x=is_wide, levels=near,
        )  # fmt: skip
        told = ", ".join(f"{d.series} {d.label}: {d.y:.3f} at {d.x:,.0f} MiB" for d in dots)
        figures.append(place.figure(
            f"{metric}_memory", f"{axis} over peak memory. {told}", drawing,
            MEANT[metric], MEMORY, place.seeds,
            "Filled and joined: the Pareto front of the means, which no other beats in both. It is "
            "no test: the table of contrasts tells what can be told apart",
            *(["Memory on a logarithmic scale"] if is_wide else []),
            *_beyond(place, metric, {k: level for k, level in levels.items() if k not in near}),
        ))  # fmt: skip
        if without:
            absent.append(
                f"Not in the figure of {axis} over memory, for want of one: {', '.join(without)}."
            )
    return Drawn(figures=figures, absent=absent)


def _dots_over_memory(place: Place, metric: str) -> tuple[list[Dot], list[str]]:
    dots, without = [], []
    for configuration in place.configurations:
        found, peak = over_seeds(configuration, metric), peak_of(configuration)
        if found is None or peak is None:
            without.append(configuration.name)
            continue
        dots.append(Dot(
            series=series_of(configuration), label=label_of(configuration, place),
            x=peak / 2**20, y=found.mean, y_ends=ends_of(found),
        ))  # fmt: skip
    return dots, without


def _front(
    places: Sequence[tuple[float, float]], less_is_better: bool
) -> list[tuple[float, float]]:
    """Those that no other equals or beats in both, from the least memory on."""
    sign = 1 if less_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(places, key=lambda place: (place[0], sign * place[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    return front


def _scores_of(place: Place, subject: str, metric: str) -> set[float]:
    runs = [run.run for configuration in place.configurations for run in configuration.runs]
    return {score for run in runs if (score := run.score(subject, TASK, metric)) is not None}


def _control_levels(place: Place) -> dict[str, float]:
    found = _scores_of(place, CONTROL, "acc")
    return {"bag of words": found.pop()} if len(found) == 1 else {}


_UNTRAINED = (("the original base", "original"), ("the bases trained on", "quantized"))


def _is_near(level: float, dots: Sequence[Dot]) -> bool:
    """Whether an axis that shows it still tells the dots apart."""
    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    return low - 2 * (high - low) <= level <= high + 2 * (high - low)


def _beyond(place: Place, metric: str, far: Mapping[str, float]) -> Iterator[str]:
    """Controls that would squeeze the axis are told instead."""
    told = [f"{name} {format_value(level)}" for name, level in far.items()]
    told += [
        f"{label} {', '.join(format_value(score) for score in sorted(scores))}"
        for label, subject in _UNTRAINED
        if (scores := _scores_of(place, subject, metric))
    ]  # fmt: skip
    runs = [run.run for configuration in place.configurations for run in configuration.runs]
    shares = {run.find("prepare", "result", "majority_share") for run in runs} - {None}
    if metric == "acc" and shares:
        told += [f"{MAJORITY} {', '.join(format_value(share) for share in sorted(shares))}"]
    if told:
        yield f"Not drawn: {'; '.join(told)}"


def trade_off_table(study: Study) -> Table:
    """What the figures of it show, in one file: `dvc plots` draws it."""
    rows = []
    for place in places_of(study):
        for configuration in place.configurations:
            found = [over_seeds(configuration, metric) for metric in QUALITY]
            rows.append([
                text(configuration.name), text(place.setting), show(peak_of(configuration)),
                *(estimate_cell(of) for of in found),
            ])  # fmt: skip
    return Table(
        name="trade_off",
        title="Accuracy and NLL over memory",
        columns=[
            Column("configuration", "Configuration"), Column("setting", "Hardware"),
            Column("peak_bytes", "Peak of a step"),
            *(Column(metric, axis, with_interval=True) for metric, axis in QUALITY.items()),
        ],
        rows=rows,
    )  # fmt: skip
