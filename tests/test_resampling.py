"""Noise of a sweep, against distributions whose truth is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bitrank.resampling import (
    Estimate,
    SeedNoise,
    bootstrap,
    exact,
    holm,
    mean_interval,
    net_sign_test,
    outcome_of,
    pool,
)
from bitrank.statistics import sign_test

ITEMS = 120
SPREAD_OF_ITEMS = 1.0


def draw(
    generator: np.random.Generator, truth: float, num_seeds: int, spread_of_seeds: float
) -> np.ndarray:
    """Differences with effects of items, which are skewed, of seeds, and of both together."""
    items = SPREAD_OF_ITEMS * (generator.exponential(size=ITEMS) - 1)
    seeds = spread_of_seeds * generator.standard_normal((num_seeds, 1))
    return truth + items + seeds + 0.3 * generator.standard_normal((num_seeds, ITEMS))


def study(num_seeds: int, spread_of_seeds: float, truth: float) -> list[Estimate]:
    generator = np.random.default_rng(num_seeds)
    return [
        bootstrap(draw(generator, truth, num_seeds, spread_of_seeds), draws=800) for _ in range(300)
    ]


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.1, 0.5])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    num_seeds: int, spread_of_seeds: float
) -> None:
    found = study(num_seeds, spread_of_seeds, truth=0.4)
    held = np.mean([e.low <= 0.4 <= e.high for e in found if e.low is not None and e.high])
    assert held >= 0.92  # 95 %, less three standard errors of 300 trials


def test_the_interval_of_many_seeds_is_not_needlessly_wide() -> None:
    held = np.mean([e.low <= 0.4 <= e.high for e in study(5, 0.0, 0.4) if e.low and e.high])
    assert held <= 0.99


@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.1, 0.5])
def test_no_difference_is_rarely_called_one(spread_of_seeds: float) -> None:
    found = study(3, spread_of_seeds, truth=0.0)
    assert np.mean([e.p is not None and e.p < 0.05 for e in found]) <= 0.08


@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.1, 0.5])
def test_noise_that_is_pooled_over_runs_keeps_what_the_interval_says(
    spread_of_seeds: float,
) -> None:
    """Two seeds each of six configurations: each alone knows next to nothing."""
    generator = np.random.default_rng(8)
    held, narrower = [], []
    for _ in range(300):
        means = [draw(generator, 0, 2, spread_of_seeds).mean(axis=1) for _ in range(6)]
        table = draw(generator, 0.4, 2, spread_of_seeds)
        noise = pool([list(values) for values in means])
        found, alone = bootstrap(table, noise=noise, draws=800), bootstrap(table, draws=800)
        held.append(found.low <= 0.4 <= found.high)
        narrower.append(found.high - found.low < alone.high - alone.low)
    assert np.mean(held) >= 0.92
    assert np.mean(narrower) > 0.8 or spread_of_seeds == 0.0


def test_noise_is_pooled_as_an_analysis_of_variance_does() -> None:
    noise = pool([[1.0, 3.0], [5.0, 5.0, 8.0], [7.0]])
    assert noise is not None
    assert (noise.variance, noise.degrees) == (pytest.approx((2 + 6) / 3), 3)
    assert pool([[1.0], [2.0]]) is None


def test_what_varies_more_than_the_others_counts_itself() -> None:
    table = draw(np.random.default_rng(9), 0.4, 3, 0.5)
    quiet, own = SeedNoise(variance=1e-6, degrees=20), float(table.mean(axis=1).var(ddof=1))
    loud = SeedNoise(variance=own, degrees=20)
    assert bootstrap(table, noise=quiet) == bootstrap(table, noise=loud)


def test_resampling_the_seeds_alone_would_call_it_one_too_often() -> None:
    """Why seeds are not resampled: three of them understate their spread."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        seeds = draw(generator, 0.0, 3, 0.5).mean(axis=1)
        means = seeds[generator.integers(0, 3, (500, 3))].mean(axis=1)
        wrong += int(np.quantile(means, 0.025) > 0 or np.quantile(means, 0.975) < 0)
    assert wrong / 300 > 0.15


def test_what_the_design_can_detect_is_found_in_four_of_five_cases() -> None:
    generator = np.random.default_rng(1)
    told = bootstrap(draw(np.random.default_rng(7), 0.0, 8, 0.2), draws=500).detectable()
    assert told is not None
    powers = [bootstrap(draw(generator, told, 8, 0.2), draws=500).p for _ in range(200)]
    assert 0.6 <= np.mean([p is not None and p < 0.05 for p in powers]) <= 0.95


def test_the_same_table_gives_the_same_numbers_and_its_opposite_the_opposite_mean() -> None:
    table = draw(np.random.default_rng(3), 0.2, 3, 0.1)
    assert bootstrap(table) == bootstrap(table.copy())
    assert bootstrap(-table).mean == -bootstrap(table).mean


def test_pairs_show_a_shift_far_below_the_spread_of_the_items() -> None:
    generator = np.random.default_rng(4)
    hard = 3 * generator.standard_normal(ITEMS)
    first = np.array([hard + 0.02 * generator.standard_normal(ITEMS) for _ in range(3)])
    second = first - 0.1 + 0.02 * generator.standard_normal((3, ITEMS))
    found = bootstrap(second - first)
    assert found.p is not None
    assert (found.p < 0.01, found.mean) == (True, pytest.approx(-0.1, abs=0.01))


def test_one_seed_has_an_interval_over_items_and_no_p() -> None:
    found = bootstrap(draw(np.random.default_rng(5), 1.0, 1, 0.0))
    assert found.low is not None
    assert found.low > 0
    assert (found.p, found.detectable(), outcome_of(found, None)) == (None, None, "unknown")


def test_one_item_tells_nothing() -> None:
    found = bootstrap(np.array([[1.0], [2.0]]))
    assert (found.mean, found.low, found.p) == (1.5, None, None)


def test_rounding_is_the_same_and_not_a_small_difference() -> None:
    found = bootstrap(np.full((3, 50), 2e-6))
    assert outcome_of(found, found.p) == "the same"
    assert outcome_of(exact(0.5), None) != "the same"


@pytest.mark.parametrize("table", [np.zeros((0, 5)), np.zeros((2, 0)), np.array([[np.nan, 1.0]])])
def test_what_is_no_number_is_refused(table: np.ndarray) -> None:
    with pytest.raises(ValueError, match="numbers"):
        bootstrap(table)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_the_mean_over_seeds_has_the_interval_of_the_t_distribution(values: list[float]) -> None:
    found = mean_interval(values)
    error = float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error or 1e-300)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_run_has_no_interval_and_none_is_an_error() -> None:
    assert mean_interval([1.5]) == Estimate(mean=1.5, low=None, high=None)
    with pytest.raises(ValueError):
        mean_interval([])


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5))
def test_with_one_seed_the_net_test_is_mcnemars(gained: int, lost: int, unchanged: int) -> None:
    net = [1] * gained + [-1] * lost + [0] * unchanged
    assert net_sign_test(net) == pytest.approx(sign_test(gained, lost))


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_the_net_test_is_the_share_of_coin_throws_at_least_as_uneven(net: list[int]) -> None:
    throws = [
        abs(sum(side * abs(n) for side, n in zip(sides, net, strict=True)))
        for sides in product((-1, 1), repeat=len(net))
    ]
    assert net_sign_test(net) == pytest.approx(np.mean([t >= abs(sum(net)) for t in throws]))


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_is_its_definition(ps: list[float | None]) -> None:
    adjusted = holm(ps)
    known = sorted(p for p in ps if p is not None)
    for p, found in zip(ps, adjusted, strict=True):
        if p is None:
            assert found is None
            continue
        steps = [min(1.0, (len(known) - k) * q) for k, q in enumerate(known) if q <= p]
        assert found is not None
        assert found >= p
        assert found in (pytest.approx(max(steps)), 1.0)


def test_holm_keeps_families_of_no_difference_quiet() -> None:
    generator = np.random.default_rng(6)
    alarms = [min(p for p in holm(list(generator.random(10))) if p is not None) < 0.05
              for _ in range(1000)]  # fmt: skip
    assert np.mean(alarms) <= 0.07
