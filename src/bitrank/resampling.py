"""Noise of a sweep: over seeds, over items, over several comparisons at once.

Two configurations that were run with the same seeds and asked the same items differ by a table of
differences, seeds by items. Items are many and far from normal: they are resampled (paired
bootstrap). Seeds are two to five: resampling so few understates their spread, so their mean is
drawn from its t distribution. Two seeds alone leave it very long tails; a sweep has more than two
runs, though, and how much a seed moves a run is estimated from all its configurations together.
Where the two that are compared vary more than that, their own spread counts. With one seed there is
no p.

The same numbers give the same result: draws are seeded. Numbers only here; no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bitrank.statistics import LEVEL, ROUNDING, Outcome

DRAWS = 10_000
SEED = 0
POWER = 0.8
DIGITS = 12
"""Significant ones that are kept: the others are those of a machine's arithmetic."""
_BLOCK = 500

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with what is known of its noise, in the unit of what is estimated."""

    mean: float
    low: float | None
    """Of the interval; null where nothing tells the noise."""
    high: float | None
    p: float | None = None
    """Two-sided, that the true mean is 0; null where it is not known."""
    stderr: float | None = None
    degrees: float | None = None
    """Of freedom, of the standard error; null where the spread between seeds is not known."""
    num_seeds: int = 1
    num_items: int | None = None
    is_exact: bool = False
    """A count, the same in every run: there is no noise."""

    @property
    def is_same(self) -> bool:
        """No item differs beyond rounding."""
        return self.is_exact and abs(self.mean) <= ROUNDING

    def detectable(self, comparisons: int = 1) -> float | None:
        """The difference that this noise lets through in 80 % of cases, at 5 % for them all."""
        if self.stderr is None or self.degrees is None:
            return None
        quantiles = stats.t.ppf([1 - LEVEL / comparisons / 2, POWER], self.degrees)
        return _settle(float(quantiles.sum()) * self.stderr)


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """How much seeds move the mean of one run, estimated from several configurations."""

    variance: float
    degrees: int


def pool(groups: Sequence[Sequence[float]]) -> SeedNoise | None:
    """From the means of the runs of each configuration, as an analysis of variance does.

    Null where no configuration has two runs.
    """
    squares = sum(float(np.var(group)) * len(group) for group in groups if len(group) > 1)
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    return SeedNoise(variance=squares / degrees, degrees=degrees) if degrees else None


def exact(value: float, num_seeds: int = 1) -> Estimate:
    return Estimate(mean=value, low=value, high=value, num_seeds=num_seeds, is_exact=True)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean over runs with the interval of the t distribution; one run has none.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values")
    known, count = np.asarray(values, dtype=np.float64), len(values)
    mean = float(known.mean())
    if count < 2:
        return Estimate(mean=_settle(mean), low=None, high=None)
    stderr = float(known.std(ddof=1)) / sqrt(count)
    half = float(stats.t.ppf(1 - level / 2, count - 1)) * stderr
    p = float(2 * stats.t.sf(abs(mean) / stderr, count - 1)) if stderr else float(mean == 0)
    return Estimate(
        mean=_settle(mean),
        low=_settle(mean - half),
        high=_settle(mean + half),
        p=_settle(p),
        stderr=_settle(stderr),
        degrees=count - 1,
        num_seeds=count,
    )


def bootstrap(
    differences: Floats, level: float = LEVEL, noise: SeedNoise | None = None, draws: int = DRAWS
) -> Estimate:
    """The mean difference over items and seeds.

    Args:
        differences: shape (seeds, items): second minus first, of one seed and one item.
        level: of the interval, and of no other number.
        noise: of a difference between two runs by their seeds, as known from other runs too.
        draws: how often items and seeds are drawn anew.

    Raises:
        ValueError: there is no difference, or one that is no number.
    """
    num_seeds, num_items = differences.shape
    if not differences.size or not np.isfinite(differences).all():
        raise ValueError("differences must be numbers, and at least one")
    mean = _settle(float(differences.mean()))
    if float(np.abs(differences).max()) <= ROUNDING:
        return replace(exact(mean, num_seeds), num_items=num_items)
    if num_items < 2:
        return Estimate(mean=mean, low=None, high=None, num_seeds=num_seeds, num_items=num_items)
    of_items = differences.mean(axis=0)
    generator = np.random.default_rng(SEED)
    drawn = _resample(of_items, generator, draws)
    of_seeds = _noise_of_mean(differences.mean(axis=1), noise)
    if of_seeds is not None:
        drawn = drawn + sqrt(of_seeds.variance) * generator.standard_t(of_seeds.degrees, draws)
    low, high = np.quantile(drawn, [level / 2, 1 - level / 2])
    item_variance = float(of_items.var(ddof=1)) / num_items
    seed_variance = 0.0 if of_seeds is None else of_seeds.variance
    return Estimate(
        mean=mean,
        low=_settle(float(low)),
        high=_settle(float(high)),
        p=None if of_seeds is None else _two_sided(drawn),
        stderr=_settle(sqrt(item_variance + seed_variance)),
        degrees=None if of_seeds is None else _degrees(item_variance, num_items - 1, of_seeds),
        num_seeds=num_seeds,
        num_items=num_items,
    )


def _noise_of_mean(of_seeds: Floats, noise: SeedNoise | None) -> SeedNoise | None:
    """Of the mean over these seeds: their own spread, or what others show if that is more."""
    count = len(of_seeds)
    if count < 2:
        return None
    own = float(of_seeds.var(ddof=1))
    if noise is None or noise.degrees < count - 1:
        return SeedNoise(variance=own / count, degrees=count - 1)
    return SeedNoise(variance=max(own, noise.variance) / count, degrees=noise.degrees)


def _resample(values: Floats, generator: np.random.Generator, draws: int) -> Floats:
    """Means of as many values drawn with replacement; in blocks, which fit into the cache."""
    means = np.empty(draws)
    for start in range(0, draws, _BLOCK):
        count = min(_BLOCK, draws - start)
        picked = generator.integers(0, len(values), (count, len(values)), dtype=np.int32)
        means[start : start + count] = values[picked].mean(axis=1)
    return means


def _two_sided(drawn: Floats) -> float:
    """Twice the share of draws on the other side of 0, and never 0 itself."""
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(drawn)))


def _degrees(item_variance: float, item_degrees: int, of_seeds: SeedNoise) -> float:
    """Of the sum of two independent means (Welch-Satterthwaite)."""
    total = item_variance + of_seeds.variance
    parts = item_variance**2 / item_degrees + of_seeds.variance**2 / of_seeds.degrees
    return _settle(total**2 / parts)


def net_sign_test(net: Sequence[int]) -> float:
    """McNemar's exact test for several seeds: p that an item's net change is up or down by a coin.

    `net` has a number an item: seeds in which only the second was right, less those in which only
    the first was. Seeds of one item are not independent, items are; so each item throws one coin
    for all its seeds. With one seed this is McNemar's exact test. It is a test of these runs:
    other seeds are other runs.
    """
    sizes, counts = np.unique(np.abs(np.asarray(net, dtype=np.int64)), return_counts=True)
    chances = np.ones(1)  # of each sum, from the lowest that is possible
    for size, count in zip(sizes, counts, strict=True):
        if size:
            heads = stats.binom.pmf(np.arange(count + 1), count, 0.5)
            spread = np.zeros(2 * size * count + 1)
            spread[:: 2 * size] = heads
            chances = np.convolve(chances, spread)
    sums = np.arange(len(chances)) - (len(chances) - 1) // 2
    as_uneven = np.abs(sums) >= abs(int(np.sum(net)))
    return min(1.0, _settle(float(chances[as_uneven].sum())))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: p for the whole family of comparisons; null stays null."""
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def outcome_of(found: Estimate, adjusted_p: float | None) -> Outcome:
    if found.is_same:
        return "the same"
    if adjusted_p is None:
        return "unknown"
    return "separable" if adjusted_p < LEVEL else "not separable"


def _settle(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
