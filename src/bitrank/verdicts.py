"""What a sweep says of a claim: holds, refuted, not separable, not measured here, differs here.

A claim is looked for in every place of the sweep where it can be tested: in each pair of
configurations, or in each configuration. It holds where the whole interval lies within its
threshold, in every place; intervals are widened for the number of places (Bonferroni). An interval
beyond the threshold in one place refutes it if it was made without conditions, or under those of
the runs; otherwise things are different here, which says nothing of where it was made. What was not
measured names what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bitrank.claims import EXTREMES, TIMED, Claim, EachRun, Pair, Selector, Threshold
from bitrank.evidence import Found, estimate_change, estimate_value, parts_of, peak_of
from bitrank.resampling import Estimate
from bitrank.statistics import LEVEL
from bitrank.study import LEARNING_RATE, Configuration, Study, kept_apart, paired
from bitrank.tables import format_bytes

Outcome = Literal["holds", "refuted", "not separable", "not measured here", "differs here"]
SAME_MEMORY = 0.05
"""Relative difference of two peaks up to which memory counts as equal."""
Both = tuple[Configuration, Configuration]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a claim was tested, and what came out."""

    where: str
    keys: tuple[str, ...]
    found: Found
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Verdict:
    name: str
    claim: Claim
    outcome: Outcome
    places: Sequence[Place]
    missing: str | None
    """Of what was not measured: what a sweep would need."""


def judge_all(study: Study, claims: Mapping[str, Claim]) -> list[Verdict]:
    return [judge(study, name, claim) for name, claim in claims.items()]


def judge(study: Study, name: str, claim: Claim) -> Verdict:
    if isinstance(claim.contrast, Pair):
        places, missing = _test_pairs(study, claim, claim.contrast)
    else:
        places, missing = _test_runs(study, claim, claim.contrast)
    measured = [place for place in places if isinstance(place.found, Estimate)]
    if places and not measured:
        missing = "; ".join(dict.fromkeys(f"{place.where}: {place.found}" for place in places))
    outcomes = {place.outcome for place in measured}
    worst: tuple[Outcome, ...] = ("refuted", "differs here", "not separable", "holds")
    outcome: Outcome = next((o for o in worst if o in outcomes), "not measured here")
    return Verdict(name=name, claim=claim, outcome=outcome, places=places, missing=missing)


def _test_pairs(study: Study, claim: Claim, pair: Pair) -> tuple[list[Place], str | None]:
    eligible = _eligible(study, [*pair.first, *pair.second])
    firsts = [c for c in eligible if _fits(c, pair.first, eligible, pair.may_differ)]
    seconds = [c for c in eligible if _fits(c, pair.second, eligible, pair.may_differ)]
    for side, fitting in ((pair.first, firsts), (pair.second, seconds)):
        if not fitting:
            return [], f"no configuration with {_write(side)}"
    allowed = [*pair.may_differ, *_free_learning_rate(study)]
    matched = [both for both in _couple(firsts, seconds) if not kept_apart(*both, allowed)]
    if not matched:
        return [], _explain_unmatched(firsts, seconds, pair, allowed)
    if pair.equal == "memory":
        equal = [both for both in matched if _same_memory(both)]
        if not equal:
            return [], _explain_memory(matched)
        matched = equal
    level = LEVEL / len(matched)
    places = []
    for first, second in matched:
        runs = paired(first, second)
        if claim.metric in TIMED:
            runs = runs[:1]  # a measurement is of a treatment and not of a seed
        found = estimate_change(study, first.setting, claim, runs, level)
        keys = tuple(dict.fromkeys(run.key for both in runs for run in both))
        where = f"{first.name} → {second.name}"
        places.append(_place(claim, where, keys, found, (first, second)))
    return places, None


def _test_runs(study: Study, claim: Claim, each: EachRun) -> tuple[list[Place], str | None]:
    eligible = _eligible(study, each.fits)
    fitting = [c for c in eligible if _fits(c, each.fits, eligible, [])]
    if not fitting:
        return [], f"no configuration with {_write(each.fits)}"
    parts = [(c, part) for c in fitting for part in parts_of(claim.metric, c)]
    places = []
    for configuration, part in parts:
        found = estimate_value(study, claim.metric, part, configuration, LEVEL / len(parts))
        where = f"{configuration.name} ({part})" if part else configuration.name
        places.append(_place(claim, where, configuration.keys, found, (configuration,)))
    return places, None


def _place(
    claim: Claim, where: str, keys: tuple[str, ...], found: Found, of: Sequence[Configuration]
) -> Place:
    outcome: Outcome = "not measured here"
    if isinstance(found, Estimate):
        outcome = hold_against(found, claim.threshold)
        if outcome == "refuted" and not (claim.universal or _conditions_match(claim, of)):
            outcome = "differs here"
    return Place(where=where, keys=keys, found=found, outcome=outcome)


def hold_against(found: Estimate, threshold: Threshold) -> Outcome:
    """Where an interval lies: within the threshold, beyond it, or across it; or there is none."""
    if found.low is None or found.high is None:
        return "not separable"
    least = float("-inf") if threshold.at_least is None else threshold.at_least
    most = float("inf") if threshold.at_most is None else threshold.at_most
    if least <= found.low and found.high <= most:
        return "holds"
    return "refuted" if found.high < least or found.low > most else "not separable"


def _conditions_match(claim: Claim, of: Sequence[Configuration]) -> bool:
    return all(
        configuration.params.get(condition.field) in condition.values
        for condition in claim.conditions
        for configuration in of
    )


def _eligible(study: Study, selectors: Sequence[Selector]) -> list[Configuration]:
    """Each at its chosen learning rate, unless learning rates are what is compared."""
    every = any(selector.field == LEARNING_RATE for selector in selectors)
    return [c for c in study.configurations if every or c.is_chosen]


def _free_learning_rate(study: Study) -> list[str]:
    """Where a sweep varies it, two methods are compared each at its own."""
    return [LEARNING_RATE] if LEARNING_RATE in study.sweep.axes else []


def _fits(
    configuration: Configuration,
    selectors: Sequence[Selector],
    among: Sequence[Configuration],
    may_differ: Sequence[str],
) -> bool:
    for selector in selectors:
        value = configuration.params.get(selector.field)
        if selector.values[0] in EXTREMES:
            rivals = [
                other.params.get(selector.field)
                for other in among
                if not kept_apart(configuration, other, may_differ)
            ]
            pick = min if selector.values[0] == "smallest" else max
            numbers = [float(rival) for rival in rivals if rival not in (None, "null")]
            if value in (None, "null") or float(value) != pick(numbers):
                return False
        elif value not in selector.values:
            return False
    return True


def _couple(firsts: Sequence[Configuration], seconds: Sequence[Configuration]) -> Iterator[Both]:
    for first in firsts:
        for second in seconds:
            same = first is second or first.setting != second.setting
            if not same and paired(first, second):
                yield first, second


def _explain_unmatched(
    firsts: Sequence[Configuration],
    seconds: Sequence[Configuration],
    pair: Pair,
    allowed: Sequence[str],
) -> str:
    """The nearest two, and what keeps them from being compared."""
    if firsts == seconds:  # smallest and largest are the same
        return f"one value of {', '.join(selector.field for selector in pair.first)} only"
    rivals = [(f, s) for f in firsts for s in seconds if f is not s]
    here = [both for both in rivals if both[0].setting == both[1].setting]
    if not here:
        return "both are there, but not in one setting (hardware and code)"
    first, second = min(here, key=lambda both: len(kept_apart(both[0], both[1], allowed)))
    if not paired(first, second):
        return f"{first.name} and {second.name} have no seed in common"
    others = kept_apart(first, second, allowed)
    return f"{first.name} and {second.name} differ in {', '.join(others)} too"


def _same_memory(both: Both) -> bool:
    first, second = (peak_of(configuration) for configuration in both)
    return bool(first and second and abs(second / first - 1) <= SAME_MEMORY)


def _explain_memory(matched: Sequence[Both]) -> str:
    known = [(f, s, a, b) for f, s in matched if (a := peak_of(f)) and (b := peak_of(s))]
    if not known:
        return "the peak of a training step is not known of both"
    first, second, a, b = min(known, key=lambda entry: abs(entry[3] / entry[2] - 1))
    return (
        f"no two hold as much to within {SAME_MEMORY:.0%}; the nearest are {first.name} "
        f"({format_bytes(a)}) and {second.name} ({format_bytes(b)}): sweep over "
        "train.gradient_checkpointing or train.micro_batch_size, too"
    )


def _write(selectors: Sequence[Selector]) -> str:
    return " and ".join(f"{s.field} = {' or '.join(s.values)}" for s in selectors)
