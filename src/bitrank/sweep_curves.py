"""The figures of how a sweep's configurations learned, what they keep when they are served, and
what they forgot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from statistics import fmean

from bitrank.charts import Dot, Ends, draw_curves, draw_dots, draw_shares
from bitrank.contrasts import Contrast
from bitrank.evidence import rise_on
from bitrank.figures import Points
from bitrank.resampling import Estimate
from bitrank.serving_tables import SYMBOLS
from bitrank.statistics import LEVEL
from bitrank.study import Configuration, Study
from bitrank.sweep_places import Drawn, Place, ends_of, gather, label_of, places_of, series_of
from bitrank.sweep_serving import kept_of, served_ways
from bitrank.tables import Column, Table, show

SMOOTHED = 20
"""The training loss is drawn as a running mean over one in so many of the steps."""


def losses(study: Study) -> Drawn:
    return gather(study, _losses)


def _losses(place: Place) -> Drawn:
    panels: dict[str, dict[str, tuple[Points, Points]]] = {}
    without = []
    for configuration in place.configurations:
        training, validation = (_mean_curve(configuration, key) for key in ("losses", "validation"))
        if training or validation:
            lines = panels.setdefault(series_of(configuration), {})
            lines[label_of(configuration, place)] = (_smooth(training), validation)
        else:
            without.append(configuration.name)
    if not panels:
        return Drawn(absent=[f"No loss curves on {place.setting}: no run has recorded losses."])
    alt = "Loss over the steps of training, at the end " + ", ".join(
        f"{title} {label} {(validation or training)[-1][1]:.3f}"
        for title, lines in panels.items() for label, (training, validation) in lines.items()
    )  # fmt: skip
    missing = [f"Not in the loss curves, which it has not: {name}." for name in without]
    figure = place.figure(
        "losses", alt, draw_curves(panels),
        "Loss of a trained token in nats, mean over seeds, on a logarithmic scale. Lines: "
        f"training, running mean over one {SMOOTHED}th of the steps. Markers: the validation rows",
    )  # fmt: skip
    return Drawn(figures=[figure], absent=missing)


def _mean_curve(configuration: Configuration, key: str) -> Points:
    """Over the steps that all runs have."""
    curves = [
        {point["step"]: point["loss"] for point in run.run.find("train", "result", key) or []}
        for run in configuration.runs
    ]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(step, fmean(curve[step] for curve in curves)) for step in steps]


def _smooth(points: Points) -> Points:
    """A running mean, at the middle of what it is taken over."""
    width = max(1, len(points) // SMOOTHED)
    windows = (points[start : start + width] for start in range(len(points) - width + 1))
    return [(fmean(x for x, _ in window), fmean(y for _, y in window)) for window in windows]


def losses_table(study: Study, key: str) -> Table:
    """A column a configuration: `dvc plots` draws it. `key`: of the record of training."""
    chosen = [(c, dict(_mean_curve(c, key))) for place in places_of(study)
              for c in place.configurations]  # fmt: skip
    known = [(configuration, curve) for configuration, curve in chosen if curve]
    steps = sorted({step for _, curve in known for step in curve})
    return Table(
        name={"losses": "training_losses", "validation": "validation_losses"}[key],
        title="Mean loss over seeds",
        columns=[Column("step", "Step"), *(Column(c.name, c.name) for c, _ in known)],
        rows=[[show(step), *(show(curve.get(step)) for _, curve in known)] for step in steps],
    )


def kept_gains(study: Study) -> Drawn:
    """The share of the gain that each way to serve keeps."""
    return gather(study, _kept_gains)


def _kept_gains(place: Place) -> Drawn:
    rows: dict[str, dict[str, tuple[float, Ends]]] = {}
    undefined = []
    for configuration in place.configurations:
        for way, label in served_ways(configuration):
            found = kept_of(configuration, way, "nll")
            if isinstance(found, str):
                undefined.append(f"{configuration.name}, {label} ({found})")
                continue
            low, high = ends_of(found)
            ends = (None, None) if low is None or high is None else (100 * low, 100 * high)
            rows.setdefault(configuration.name.removesuffix(f" on {place.setting}"), {})[label] = (
                100 * found.mean, ends,
            )  # fmt: skip
    absent = [f"Gain kept, not drawn: {'; '.join(undefined)}."] if undefined else []
    if not rows:
        why = "no share of the gain is known" if undefined else "no run has a record of `fidelity`"
        return Drawn(absent=[f"No figure of merge fidelity on {place.setting}: {why}.", *absent])
    told = "; ".join(
        f"{row}: " + ", ".join(f"{label} {share:.1f} %" for label, (share, _) in found.items())
        for row, found in rows.items()
    )
    figure = place.figure(
        "kept_gain", f"Share of the gain that is kept. {told}",
        draw_shares(rows, "share of the gain in NLL that is kept (%)"),
        "Share of the gain in NLL over the untrained base that is kept when the adapter is served "
        f"in another way than it was trained, on the same items. {SYMBOLS.removesuffix('.')}",
        place.seeds if place.seeds.startswith("Mean") else "One seed: 95 % interval over items",
    )  # fmt: skip
    return Drawn(figures=[figure], absent=absent)


def forgetting(study: Study, with_controls: Sequence[Contrast]) -> Drawn:
    """What was forgotten on each benchmark, against the gain on the trained task."""
    return gather(study, partial(_forgetting, with_controls))


def _forgetting(with_controls: Sequence[Contrast], place: Place) -> Drawn:
    gains = {found.second: found.nll for found in with_controls if found.first == "quantized"}
    runs = [run.run for configuration in place.configurations for run in configuration.runs]
    tasks = sorted({task for run in runs for task in run.benchmarks})
    if not tasks:
        return Drawn(absent=[
            f"No figure of forgetting on {place.setting}: no benchmark was evaluated beside the "
            "trained task."
        ])  # fmt: skip
    figures, absent = [], []
    for task in tasks:
        dots, without = [], []
        for configuration in place.configurations:
            gain, rise = (
                gains.get(configuration.name),
                rise_on(place.study, task, configuration, LEVEL),
            )
            if gain is None or isinstance(rise, str):
                without.append(configuration.name)
                continue
            dots.append(_forgotten(configuration, place, gain, rise))
        if not dots:
            absent.append(f"No figure of forgetting on {task}: no item logs before and after.")
            continue
        if without:
            absent.append(f"Not in the figure of forgetting on {task}: {', '.join(without)}.")
        told = ", ".join(f"{d.series} {d.label} {d.y:+.1f} % for {d.x:.2f} nats" for d in dots)
        figures.append(place.figure(
            f"forgetting_{re.sub(r'[^A-Za-z0-9]+', '_', task)}",
            f"Rise of the NLL on {task} against the gain on the trained task. {told}",
            draw_dots(dots, place.series, "gain on the trained task (nats of NLL)",
                      f"rise of the NLL on {task} (%)"),
            f"What was not trained ({task}) against what was: rise of the NLL by training, of that "
            "of the base before, and fall of the NLL on the trained task. Less forgotten is lower. "
            "95 % intervals: paired bootstrap over items and seeds, not corrected",
        ))  # fmt: skip
    return Drawn(figures=figures, absent=absent)


def _forgotten(configuration: Configuration, place: Place, gain: Estimate, rise: Estimate) -> Dot:
    low, high = (None if end is None else -end for end in (gain.high, gain.low))
    below, above = (None if end is None else 100 * end for end in ends_of(rise))
    return Dot(
        series=series_of(configuration), label=label_of(configuration, place), x=-gain.mean,
        y=100 * rise.mean, x_ends=(low, high), y_ends=(below, above),
    )  # fmt: skip
