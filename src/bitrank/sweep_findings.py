"""A sweep in plain words: what to take, on what evidence, and what a reader must be warned of.

What is recommended is not what scored best once: it is what needs the least memory among all that
the evidence does not separate from the best. Where noise is not known, nothing is recommended.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from bitrank import records
from bitrank.contrasts import Contrast
from bitrank.evidence import peak_of
from bitrank.resampling import mean_interval
from bitrank.runs import CONTROL, TASK, Run
from bitrank.study import Configuration, Study, kept_apart, paired
from bitrank.tables import format_bytes, format_value, ranged
from bitrank.verdicts import Verdict

TELLING = ("separable", "not separable", "the same")
WITHIN = ("not separable", "the same")


def write_headline(study: Study, between: Sequence[Contrast], size: int) -> str:
    """One recommendation for each setting: nothing is ranked across hardware."""
    several = len(study.settings) > 1
    told = []
    for setting in study.settings:
        sentence = _recommend(_rivals(study, setting), between, size)[0]
        told.append(f"On {setting}: {sentence}" if several else sentence)
    return " ".join(told)


def write_brief(study: Study) -> str:
    """What was swept, in one line."""
    sweep = study.sweep
    axes = "; ".join(f"{name}: {', '.join(values)}" for name, values in sweep.axes.items())
    commit = str(sweep.manifest.get("git_commit") or "unknown")[:12]
    return (
        f"Sweep {sweep.id} ({axes or 'one point'}); {len(study.runs)} of {len(sweep.points)} "
        f"points; {'; '.join(study.settings)}; commit {commit}"
    )


def write_points(
    study: Study,
    between: Sequence[Contrast],
    with_controls: Sequence[Contrast],
    verdicts: Sequence[Verdict],
) -> list[str]:
    """The evidence for the recommendation, the controls, and the count of the verdicts."""
    told = []
    for setting in study.settings:
        rivals = _rivals(study, setting)
        _, pick, evidence = _recommend(rivals, between, len(between) + len(with_controls))
        told += evidence
        if pick is not None:
            told += _beside_controls(pick, with_controls)
    counts = Counter(verdict.outcome for verdict in verdicts)
    listed = ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
    return [*told, f"Claims: {listed}."] if verdicts else told


def _rivals(study: Study, setting: str) -> list[Configuration]:
    """Those whose NLL is known, best first."""
    rivals = [
        configuration
        for configuration in study.configurations
        if configuration.setting == setting
        and configuration.is_chosen
        and mean_nll(configuration) is not None
    ]
    return sorted(rivals, key=lambda configuration: (mean_nll(configuration), configuration.name))


def mean_nll(configuration: Configuration) -> float | None:
    """Of the tuned model on the trained task, over seeds; null unless known of each."""
    values = [run.run.score("adapter", TASK, "nll") for run in configuration.runs]
    return None if None in values else mean_interval(values).mean


def _recommend(
    rivals: Sequence[Configuration], between: Sequence[Contrast], size: int
) -> tuple[str, Configuration | None, list[str]]:
    """The sentence, what it recommends, and the evidence."""
    if not rivals:
        return "No recommendation: no configuration has a score on the trained task.", None, []
    best, *others = rivals
    if not others:
        return f"Nothing to choose: {best.name} is the only configuration with a score.", best, []
    against = {other.name: _find(between, best, other) for other in others}
    untold = [name for name, found in against.items() if not found or found.outcome not in TELLING]
    if untold:
        return (
            f"No recommendation: the noise between {best.name}, which has the lowest NLL, and "
            f"{', '.join(untold)} is not known. It takes item logs and at least two seeds each.",
            None,
            [],
        )
    contenders = [best] + [
        other for other in others
        if (found := against[other.name]) is not None and found.outcome in WITHIN
    ]  # fmt: skip
    peaks = {contender.name: peak_of(contender) for contender in contenders}
    known = [(peak, c) for c in contenders if (peak := peaks[c.name]) is not None]
    if len(known) < len(contenders):
        without = [name for name, peak in peaks.items() if peak is None]
        return (
            f"No recommendation: the memory of {', '.join(without)} was not measured.",
            None,
            [],
        )
    peak, pick = min(known, key=lambda entry: entry[0])
    held = f"{format_bytes(peak)} at the peak of a training step"
    if len(contenders) == 1:
        sentence = f"Take {best.name}: it is better than all others, and holds {held}."
    else:
        sentence = (
            f"Take {pick.name}: it holds {held}, the least of the {len(contenders)} configurations "
            "that the evidence does not separate from the best."
        )
    return sentence, pick, list(_evidence(contenders, pick, against, size))


def _find(
    between: Sequence[Contrast], first: Configuration, second: Configuration
) -> Contrast | None:
    names = {first.name, second.name}
    return next((found for found in between if {found.first, found.second} == names), None)


def _evidence(
    contenders: Sequence[Configuration],
    pick: Configuration,
    against: Mapping[str, Contrast | None],
    size: int,
) -> Iterator[str]:
    """`contenders` begin with the best; the pick is held against it, or it against the next."""
    best = contenders[0]
    yield (
        f"Lowest mean NLL: {best.name}, {format_value(mean_nll(best))} nats over {len(best.runs)} "
        f"seeds; not separable from it: {len(contenders) - 1} of {len(against)} others."
    )
    other = pick if pick is not best else next(iter(contenders[1:]), best)
    found = against.get(other.name)
    if found is None or found.nll is None:
        return
    nll = found.nll
    change = ranged(nll.mean, nll.low, nll.high, signed=True).text
    yield (
        f"NLL from {found.first} to {found.second}: {change} nats, p "
        f"{format_value(found.nll_adjusted_p)} after correction over {size} comparisons. Not "
        f"separable is not equal: with {nll.num_seeds} seeds and {nll.num_items:,} items a "
        f"difference below {format_value(nll.detectable(size))} nats may go unnoticed."
    )
    rival = best if pick is not best else other
    held, beside = peak_of(pick), peak_of(rival)
    if held and beside:
        share = format_value(held / beside, "share")
        yield f"{pick.name} needs {share} of the memory that {rival.name} does in a training step."


def _beside_controls(pick: Configuration, with_controls: Sequence[Contrast]) -> Iterator[str]:
    """Whether training did anything, and more than a bag of words."""
    for found in with_controls:
        if found.second == pick.name and found.first in ("quantized", CONTROL) and found.nll:
            rival = "a bag of words" if found.first == CONTROL else "its base before training"
            nll = found.nll
            change = ranged(nll.mean, nll.low, nll.high, signed=True).text
            yield f"{pick.name} against {rival}: NLL {change} nats ({found.verdict})."


def software_differences(study: Study) -> list[str]:
    """Files and packages that are not the same in all runs."""
    seen: dict[str, set[str]] = defaultdict(set)
    for run in study.runs:
        for name, version in run.versions.items():
            seen[name].add(version)
    return sorted(name for name, versions in seen.items() if len(versions) > 1)


def write_warnings(study: Study) -> Iterator[str]:
    """What makes a sweep's evidence incomplete or doubtful."""
    for left in study.left_out:
        yield f"Left out: {left}."
    if len(study.settings) > 1:
        yield (
            f"The sweep is mixed ({'; '.join(study.settings)}): nothing is compared across that."
        )
    yield from _refusals(study)
    if mixed := software_differences(study):
        shown = ", ".join(mixed[:5]) + (" and others" if len(mixed) > 5 else "")
        yield f"Not all points ran the same code: they differ in {shown}."
    old = sorted(run.key for run in study.runs if min(run.schemas) < records.SCHEMA_VERSION)
    if old:
        yield (
            f"Records of an older schema ({', '.join(old)}): what it did not hold is shown as "
            "unknown."
        )
    if dirty := sorted(run.key for run in study.runs if _is_dirty(run.run)):
        yield f"Made with uncommitted changes of the code: {', '.join(dirty)}."
    if disturbed := sorted(run.key for run in study.runs if run.is_disturbed):
        yield (
            f"The machine had something else to do while speed was timed ({', '.join(disturbed)}):"
            " no verdict rests on these times."
        )
    counts = {len(configuration.runs) for configuration in study.configurations}
    if counts == {1}:
        yield "One seed: how much another seed would change is not known, so nothing is ranked."
    elif min(counts) < max(counts):
        yield f"Not all configurations have as many seeds: {min(counts)} to {max(counts)}."
    if len(study.configurations) == 1:
        yield "One configuration: there is nothing to compare it with."


def _refusals(study: Study) -> Iterator[str]:
    """Runs that were meant to differ in what was swept alone, and do not."""
    axes = list(study.sweep.axes)
    for first, second in combinations(study.configurations, 2):
        apart = kept_apart(first, second, axes)
        if apart and first.setting == second.setting and paired(first, second):
            named = ", ".join(apart[:5]) + (" and others" if len(apart) > 5 else "")
            yield f"Not compared: {first.name} and {second.name} also differ in {named}."


def _is_dirty(run: Run) -> bool:
    return any(run.find(stage, "observation", "environment", "git_dirty") for stage in run.records)
