"""Whether two models differ by more than noise.

Two subjects answered the same items, so they are compared item by item, which removes the items'
own spread. Log-likelihoods: the mean of the differences and its standard error, separable when
the mean is at least 1.96 standard errors from 0. Accuracy: the exact two-sided sign test of the
items that only one subject got right (McNemar), because a handful of them is far from normal.
No torch here: a laptop compares what a cluster measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb, hypot, sqrt
from statistics import fmean, stdev
from typing import Literal

from bitrank.records import Item

Z = 1.96
"""Quantile of the normal distribution for a two-sided test at 5 %."""
LEVEL = 0.05
ROUNDING = 1e-4
"""Nats. Differences below it on every item are the rounding of fp32 sums, not an effect."""

Outcome = Literal["separable", "not separable", "the same", "unknown"]
Column = Literal["nll", "nll_per_token", "choice_nll", "correct"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first, in the unit of what is compared."""

    mean: float
    stderr: float | None
    num_pairs: int | None
    """Items that both answered; null: compared without pairing."""
    outcome: Outcome

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's 95 % confidence interval, from the normal distribution."""
        if self.stderr is None:
            return None
        return self.mean - Z * self.stderr, self.mean + Z * self.stderr


def pair_items(first: Iterable[Item], second: Iterable[Item]) -> list[tuple[Item, Item]]:
    """The items of both, matched by document; the n-th repeat of a document with the n-th."""
    there = _by_document(second)
    return [(item, there[key]) for key, item in _by_document(first).items() if key in there]


def _by_document(items: Iterable[Item]) -> dict[tuple[str, int], Item]:
    seen: Counter[str] = Counter()
    keyed = {}
    for item in items:
        keyed[item.doc_hash, seen[item.doc_hash]] = item
        seen[item.doc_hash] += 1
    return keyed


def value_of(item: Item, column: Column) -> float | None:
    """What an item is compared by; null where it has none."""
    if column == "nll_per_token":
        return item.nll / item.num_tokens if item.nll is not None and item.num_tokens else None
    value = getattr(item, column)
    return None if value is None else float(value)


def compare_nll(pairs: Sequence[tuple[Item, Item]], column: Column = "nll") -> Difference | None:
    """Mean change of -log p(target) in nats; null when no document was answered by both."""
    values = [(value_of(first, column), value_of(second, column)) for first, second in pairs]
    changes = [b - a for a, b in values if a is not None and b is not None]
    if not changes:
        return None
    mean, stderr = fmean(changes), _standard_error(changes)
    outcome: Outcome = "unknown"
    if max(map(abs, changes)) <= ROUNDING:
        outcome = "the same"
    elif stderr is not None:
        outcome = judge(mean, stderr)
    return Difference(mean=mean, stderr=stderr, num_pairs=len(changes), outcome=outcome)


def compare_accuracy(pairs: Sequence[tuple[Item, Item]]) -> Difference | None:
    """Change of the share of correct items; null when no document was judged for both."""
    judged = [(a.correct, b.correct) for a, b in pairs
              if a.correct is not None and b.correct is not None]  # fmt: skip
    if not judged:
        return None
    changes = [float(second) - float(first) for first, second in judged]
    gained, lost = changes.count(1.0), changes.count(-1.0)
    outcome: Outcome = "the same"
    if gained or lost:
        outcome = "separable" if sign_test(gained, lost) < LEVEL else "not separable"
    return Difference(
        mean=fmean(changes),
        stderr=_standard_error(changes),
        num_pairs=len(changes),
        outcome=outcome,
    )


def compare_unpaired(
    first: float, first_stderr: float | None, second: float, second_stderr: float | None
) -> Difference:
    """Two means whose items are not at hand. On the same items this overstates the noise."""
    mean = second - first
    if first_stderr is None or second_stderr is None:
        return Difference(mean=mean, stderr=None, num_pairs=None, outcome="unknown")
    stderr = hypot(first_stderr, second_stderr)
    return Difference(mean=mean, stderr=stderr, num_pairs=None, outcome=judge(mean, stderr))


@dataclass(frozen=True, kw_only=True)
class Retained:
    """How much of what training gained is still there in what is served."""

    share: float | None
    """1: all of it; 0: nothing; below 0: worse than the untrained base. Null: see `reason`."""
    stderr: float | None
    reason: str | None
    """Why there is no share."""


def retained_share(
    untrained: Iterable[Item], trained: Iterable[Item], served: Iterable[Item], column: Column
) -> Retained:
    """(untrained - served) / (untrained - trained), of means over the items that all answered.

    The standard error is that of a ratio of means over the same items: of the residuals
    (untrained - served) - share * (untrained - trained), over the mean gain (delta method).
    """
    gains, kept = [], []
    after = _by_document(served)
    of_training = _by_document(trained)
    for key, item in _by_document(untrained).items():
        if key not in after or key not in of_training:
            continue
        start, trained_to, served_at = (
            value_of(answer, column) for answer in (item, of_training[key], after[key])
        )
        if start is not None and trained_to is not None and served_at is not None:
            gains.append(start - trained_to)
            kept.append(start - served_at)
    spread = _standard_error(gains)
    if spread is None:
        return Retained(share=None, stderr=None, reason="fewer than two items to compare")
    gain = fmean(gains)
    if judge(gain, spread) != "separable":
        return Retained(share=None, stderr=None, reason="the gain itself is within noise")
    if (gain > 0) != (column != "correct"):
        return Retained(share=None, stderr=None, reason="training gained nothing")
    share = fmean(kept) / gain
    residuals = [k - share * g for k, g in zip(kept, gains, strict=True)]
    return Retained(share=share, stderr=(_standard_error(residuals) or 0.0) / abs(gain),
                    reason=None)  # fmt: skip


def judge(mean: float, stderr: float) -> Outcome:
    return "separable" if mean != 0 and abs(mean) >= Z * stderr else "not separable"


def sign_test(gained: int, lost: int) -> float:
    """Two-sided p that as uneven a split as this comes from a fair coin (McNemar's exact test)."""
    total = gained + lost
    tail = sum(comb(total, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def _standard_error(values: Sequence[float]) -> float | None:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None
