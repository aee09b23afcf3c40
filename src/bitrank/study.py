"""A sweep as evidence: its runs in configurations that differ in more than their seeds.

Two runs are of one configuration when their `params.yaml` differ in seeds alone, and when hardware,
code and library versions are the same. What is not usable (a point that failed, runs or was not
begun, records that cannot be read) is left out and named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitrank.errors import UserError
from bitrank.identity import hash_json
from bitrank.pairing import keep_apart
from bitrank.projection import name_run
from bitrank.resampling import mean_interval
from bitrank.sweep_projection import Sweep, read_sweep
from bitrank.swept_runs import SweptRun, read_swept_run, validation_loss

SEEDS = ("seed", "seeds.init", "seeds.order")
LEARNING_RATE = "train.learning_rate"
IN_EVERY_NAME = ("precision", "precision.name", "adapter", "adapter.method", "adapter.rank")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    name: str
    setting: str
    """Hardware, and where a sweep has several, the code; nothing is compared across settings."""
    params: Mapping[str, str]
    """Without seeds."""
    runs: Sequence[SweptRun]
    """Of different seeds, by seed."""
    is_chosen: bool = True
    """False: on the validation rows another learning rate did better."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(run.key for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    key: str
    status: str
    reason: str | None

    def __str__(self) -> str:
        why = "" if self.reason is None else f" ({self.reason})"
        return f"{self.key}: {self.status}{why}"


@dataclass(frozen=True, kw_only=True)
class Study:
    sweep: Sweep
    configurations: Sequence[Configuration]
    left_out: Sequence[LeftOut]

    @property
    def runs(self) -> list[SweptRun]:
        return [run for configuration in self.configurations for run in configuration.runs]

    @property
    def settings(self) -> list[str]:
        return sorted({configuration.setting for configuration in self.configurations})


def read_study(folder: Path) -> Study:
    """Read `data/sweeps/<sweep>`.

    Raises:
        UserError: there is no such sweep, its manifest cannot be read, or no point can be used.
    """
    sweep = read_sweep(folder)
    if not sweep.points:
        raise UserError(f"{folder} has no points: the sweep's command declares them")
    runs: list[SweptRun] = []
    left_out: list[LeftOut] = []
    for point in sweep.points:
        if point.status != "done":
            left_out.append(LeftOut(key=point.key, status=point.status, reason=point.reason))
            continue
        try:
            runs.append(read_swept_run(point))
        except UserError as error:
            reason = str(error).replace(f"{folder}/", "")  # a sweep may be read in several places
            left_out.append(LeftOut(key=point.key, status="unreadable", reason=reason))
    if not runs:
        told = "".join(f"\n  {left}" for left in left_out)
        raise UserError(
            f"{folder} has no point that is done; the sweep's command runs what is missing:{told}"
        )
    configurations = _choose_learning_rates(_configure(sweep, runs))
    return Study(sweep=sweep, configurations=configurations, left_out=left_out)


def _configure(sweep: Sweep, runs: Sequence[SweptRun]) -> list[Configuration]:
    grouped: dict[tuple[str, str], list[SweptRun]] = defaultdict(list)
    settings = _name_settings(runs)
    for run, setting in zip(runs, settings, strict=True):
        grouped[setting, hash_json(_without_seeds(run.params))].append(run)
    several = len(set(settings)) > 1
    names = _name_each(sweep, [of_one[0] for of_one in grouped.values()])
    return [
        Configuration(
            name=f"{name} on {setting}" if several else name,
            setting=setting,
            params=_without_seeds(of_one[0].params),
            runs=sorted(of_one, key=lambda run: (run.seed, run.key)),
        )
        for ((setting, _), of_one), name in zip(grouped.items(), names, strict=True)
    ]


def _without_seeds(params: Mapping[str, str]) -> dict[str, str]:
    unlike = (*SEEDS, "tracking.experiment")
    return {name: value for name, value in params.items() if name not in unlike}


def _name_each(sweep: Sweep, runs: Sequence[SweptRun]) -> list[str]:
    """Precision and rank, and what else is varied; with digits of a hash where that is not all."""
    names = []
    for run in runs:
        varied = [
            f"{axis.rpartition('.')[2]}{value}"
            for axis, value in run.point.values.items()
            if axis in sweep.axes and axis not in (*SEEDS, *IN_EVERY_NAME)
        ]
        names.append("-".join([name_run(run.params).rpartition("-s")[0], *varied]))
    digits = [hash_json(_without_seeds(run.params))[:6] for run in runs]
    distinct = {name: {d for n, d in zip(names, digits, strict=True) if n == name}
                for name in names}  # fmt: skip
    return [
        name if len(distinct[name]) == 1 else f"{name}-{digit}"
        for name, digit in zip(names, digits, strict=True)
    ]


def _name_settings(runs: Sequence[SweptRun]) -> list[str]:
    """Hardware, and a number where one file or package is not the same in all runs."""
    softwares: list[dict[str, str]] = []
    places = []
    for run in runs:
        for place, known in enumerate(softwares):
            if all(known.get(name, version) == version for name, version in run.versions.items()):
                known.update(run.versions)
                places.append(place)
                break
        else:
            places.append(len(softwares))
            softwares.append(dict(run.versions))
    if len(softwares) == 1:
        return [run.hardware for run in runs]
    return [f"{run.hardware}, code {place + 1}" for run, place in zip(runs, places, strict=True)]


def paired(first: Configuration, second: Configuration) -> list[tuple[SweptRun, SweptRun]]:
    """The runs of both that have the same seeds; one run of a seed, however often it was run."""
    here, there = ({run.seed: run for run in side.runs} for side in (first, second))
    return [(run, there[seed]) for seed, run in here.items() if seed in there]


def kept_apart(first: Configuration, second: Configuration, axes: Sequence[str]) -> list[str]:
    """What runs of the same seeds differ in beside what is compared, in name or in live treatment.

    Where no seed is shared, of the first run of each, whose seeds then stand among it.
    """
    pairs = paired(first, second) or [(first.runs[0], second.runs[0])]
    return sorted({name for a, b in pairs for name in keep_apart(a.candidate, b.candidate, axes)})


def _choose_learning_rates(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Mark those that another learning rate beats in mean loss on the validation rows.

    Where a loss is not known, nothing is chosen.
    """
    rivals: dict[str, list[int]] = defaultdict(list)
    for place, found in enumerate(configurations):
        others = {k: v for k, v in found.params.items() if k != LEARNING_RATE}
        rivals[hash_json([found.setting, others])].append(place)
    marked = list(configurations)
    for places in rivals.values():
        losses = {place: _mean_validation(configurations[place]) for place in places}
        known = {place: loss for place, loss in losses.items() if loss is not None}
        if len(known) < len(places):
            continue
        best = min(known, key=lambda place: known[place])
        for place in places:
            marked[place] = replace(configurations[place], is_chosen=place == best)
    return marked


def _mean_validation(configuration: Configuration) -> float | None:
    losses = [validation_loss(run.run) for run in configuration.runs]
    known = [loss for loss in losses if loss is not None]
    return mean_interval(known).mean if len(known) == len(losses) else None
