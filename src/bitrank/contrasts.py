"""The comparisons that a sweep's report makes: one family, corrected together.

Every two configurations of one setting, each at the learning rate that was chosen for it, and each
configuration against its controls. The log-likelihood of the answers, item by item and seed by
seed, is what ranks; accuracy with McNemar's test stands beside it. All of one family are corrected
together (Holm), so that choosing the best after the fact is paid for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from bitrank.records import Item
from bitrank.resampling import (
    Estimate,
    Floats,
    SeedNoise,
    bootstrap,
    holm,
    net_sign_test,
    outcome_of,
    pool,
)
from bitrank.runs import CONTROL, TASK
from bitrank.statistics import LEVEL, Outcome, pair_items
from bitrank.study import Configuration, Study, kept_apart, paired
from bitrank.swept_runs import SweptRun, is_unquantized

Column = Literal["nll", "choice_nll", "correct"]
Answers = Sequence[tuple[Sequence[Item], Sequence[Item]]]
"""Of each seed: the first's items and the second's."""
RECORDED: Mapping[Column, str] = {"nll": "nll", "choice_nll": "choice_nll", "correct": "acc"}
"""What the records call the mean of a column of the item logs."""
CONTROLS: tuple[tuple[str, Column], ...] = (
    ("original", "nll"), ("quantized", "nll"), (CONTROL, "choice_nll"),
)  # fmt: skip
"""Whom a tuned model is compared with, and in what. A bag of words knows the choices only."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Second minus first; of NLL less is better, of accuracy more."""

    first: str
    """A configuration's name, or a control."""
    second: str
    keys: tuple[str, ...]
    """Of the runs that were compared."""
    nll: Estimate | None
    """In nats, or of the answer's share among the choices; null: no items in common."""
    acc: Estimate | None
    mcnemar_p: float | None
    nll_adjusted_p: float | None = None
    mcnemar_adjusted_p: float | None = None

    @property
    def outcome(self) -> Outcome:
        return "unknown" if self.nll is None else outcome_of(self.nll, self.nll_adjusted_p)

    @property
    def verdict(self) -> str:
        """Of the second, in words."""
        if self.nll is None:
            return "no items to compare"
        if self.outcome == "separable":
            return "better" if self.nll.mean < 0 else "worse"
        if self.outcome == "unknown" and self.nll.num_seeds == 1:
            return "one seed: not ranked"
        return self.outcome


def compare_all(study: Study) -> tuple[list[Contrast], list[Contrast]]:
    """The contrasts between configurations, and those with the controls."""
    between = list(_between(study))
    with_controls = [
        contrast
        for configuration in study.configurations
        for subject, column in CONTROLS
        if (contrast := _with_control(study, configuration, subject, column)) is not None
    ]
    corrected = _correct([*between, *with_controls])
    return corrected[: len(between)], corrected[len(between) :]


def _between(study: Study) -> Iterator[Contrast]:
    chosen = [configuration for configuration in study.configurations if configuration.is_chosen]
    for first, second in combinations(chosen, 2):
        pairs = paired(first, second)
        matched = not kept_apart(first, second, list(study.sweep.axes))
        if first.setting == second.setting and pairs and matched:
            answers = answers_of(pairs, "adapter", "adapter", TASK)
            noises = (seed_noise(study, first.setting, TASK, c, 2) for c in ("nll", "correct"))
            yield _compare((first.name, second.name), pairs, answers, "nll", tuple(noises))


def _with_control(
    study: Study, configuration: Configuration, subject: str, column: Column
) -> Contrast | None:
    """Null where there is no such control, or where it is another: an unquantized base is both."""
    if subject == "original" and is_unquantized(configuration.runs[0]):
        return None
    pairs = [(run, run) for run in configuration.runs]
    answers = answers_of(pairs, subject, "adapter", TASK)
    noises = (seed_noise(study, configuration.setting, TASK, c, 1) for c in (column, "correct"))
    found = _compare((subject, configuration.name), pairs, answers, column, tuple(noises))
    return found if found.nll is not None or found.acc is not None else None


def seed_noise(
    study: Study, setting: str, task: str, column: Column, num_trained: int
) -> SeedNoise | None:
    """Of a difference in a mean over items, of which one or both sides were trained."""
    groups = [
        [run.run.score("adapter", task, RECORDED[column]) for run in configuration.runs]
        for configuration in study.configurations
        if configuration.setting == setting and configuration.is_chosen
    ]
    known = pool([group for group in groups if None not in group])
    return known and replace(known, variance=num_trained * known.variance)


def _compare(
    names: tuple[str, str],
    pairs: Sequence[tuple[SweptRun, SweptRun]],
    answers: Answers,
    column: Column,
    noises: tuple[SeedNoise | None, ...],
) -> Contrast:
    """Two who answered the trained task, in runs that are paired by seed; p not yet corrected."""
    losses, judged = tabulate(answers, column), tabulate(answers, "correct")
    return Contrast(
        first=names[0],
        second=names[1],
        keys=tuple(dict.fromkeys(run.key for pair in pairs for run in pair)),
        nll=None if losses is None else bootstrap(losses, noise=noises[0]),
        acc=None if judged is None else bootstrap(judged, noise=noises[1]),
        mcnemar_p=None if judged is None else net_sign_test(judged.sum(axis=0).round().tolist()),
    )


def answers_of(
    pairs: Sequence[tuple[SweptRun, SweptRun]], first: str, second: str, task: str
) -> Answers:
    """The item logs of those pairs of runs that both have one."""
    found = [
        (before.run.items.get((first, task)), after.run.items.get((second, task)))
        for before, after in pairs
    ]
    return [(before, after) for before, after in found if before and after]


def tabulate(answers: Answers, column: Column) -> Floats | None:
    """Second minus first, of shape (seeds, items), over the documents that all answered.

    Null where there is none.
    """
    if not answers:
        return None
    reference = answers[0][0]
    table = np.array([
        _column(reference, second, column) - _column(reference, first, column)
        for first, second in answers
    ])  # fmt: skip
    known = table[:, np.isfinite(table).all(axis=0)]
    return known if known.size else None


def _column(reference: Sequence[Item], items: Sequence[Item], column: Column) -> Floats:
    """Values in the order of the reference's documents; NaN where there is none."""
    places = {id(item): place for place, item in enumerate(reference)}
    values = np.full(len(reference), np.nan)
    for known, item in pair_items(reference, items):
        value = getattr(item, column)
        if value is not None:
            values[places[id(known)]] = float(value)
    return values


def _correct(family: Sequence[Contrast]) -> list[Contrast]:
    losses = holm([None if contrast.nll is None else contrast.nll.p for contrast in family])
    answers = holm([contrast.mcnemar_p for contrast in family])
    return [
        replace(contrast, nll_adjusted_p=loss, mcnemar_adjusted_p=answer)
        for contrast, loss, answer in zip(family, losses, answers, strict=True)
    ]


def describe_family(comparisons: int) -> str:
    return (
        "NLL ranks: paired bootstrap over items and seeds; how much a seed moves a run is pooled "
        "over all configurations, or the compared ones' own where that is more. 95 % interval of "
        "each comparison by itself. Accuracy: McNemar's exact test, an item with all its seeds "
        "one throw, which tells of these runs and not of other seeds. p after Holm's correction "
        f"over the {comparisons} comparisons of this report; a verdict needs p below {LEVEL}, so "
        "an interval without 0 may be not separable. Detectable: the difference that this design "
        "shows in 80 % of cases, after correction."
    )
