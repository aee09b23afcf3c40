from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrank.records import Item
from bitrank.statistics import (
    compare_accuracy,
    compare_nll,
    compare_unpaired,
    judge,
    pair_items,
    retained_share,
    sign_test,
)


def item(doc: str, nll: float = 1.0, correct: bool | None = True) -> Item:
    return Item(
        doc_hash=doc, target=" a", prediction=None, correct=correct, nll=nll, choice_nll=None,
        num_tokens=None,
    )  # fmt: skip


def paired(first: list[float], second: list[float]) -> list[tuple[Item, Item]]:
    return [(item("d", a), item("d", b)) for a, b in zip(first, second, strict=True)]


def judged(gained: int, lost: int, unchanged: int) -> list[tuple[Item, Item]]:
    answers = [(False, True)] * gained + [(True, False)] * lost + [(True, True)] * unchanged
    return [(item("d", correct=a), item("d", correct=b)) for a, b in answers]


def test_items_are_paired_by_document_and_not_by_place() -> None:
    pairs = pair_items([item("a", 1), item("b", 2), item("x")], [item("b", 20), item("a", 10)])
    assert {(a.nll, b.nll) for a, b in pairs} == {(1, 10), (2, 20)}


def test_a_repeated_document_is_paired_repeat_by_repeat() -> None:
    pairs = pair_items([item("a", 1), item("a", 2)], [item("a", 10), item("a", 20), item("a", 30)])
    assert [(a.nll, b.nll) for a, b in pairs] == [(1, 10), (2, 20)]


def test_a_shift_far_below_the_spread_of_the_items_is_separable_when_paired() -> None:
    first = [float(value) for value in range(50)]
    second = [value - 0.1 - 0.01 * (index % 2) for index, value in enumerate(first)]
    found = compare_nll(paired(first, second))
    assert found is not None
    assert found.mean == pytest.approx(-0.105)
    assert (found.outcome, found.num_pairs) == ("separable", 50)


def test_changes_that_cancel_are_not_separable() -> None:
    found = compare_nll(paired([1.0] * 50, [1.0 + 0.5 * (-1) ** k for k in range(50)]))
    assert found is not None
    assert found.outcome == "not separable"


def test_rounding_on_every_item_is_no_effect_however_regular() -> None:
    found = compare_nll(paired([1.0] * 50, [1.0 + 2e-6 + 1e-9 * k for k in range(50)]))
    assert found is not None
    assert found.outcome == "the same"


def test_one_item_has_no_standard_error_and_no_verdict() -> None:
    found = compare_nll(paired([1.0], [2.0]))
    assert found is not None
    assert (found.stderr, found.outcome) == (None, "unknown")


def test_without_a_common_item_there_is_no_difference() -> None:
    assert compare_nll([]) is None
    assert compare_accuracy([(item("d", correct=None), item("d", correct=True))]) is None


@pytest.mark.parametrize(("mean", "separable"), [(1.97, True), (-1.97, True), (1.95, False)])
def test_the_border_is_at_1_96_standard_errors(mean: float, separable: bool) -> None:
    assert (judge(mean, 1.0) == "separable") is separable


def test_a_difference_of_zero_is_never_separable() -> None:
    assert judge(0.0, 0.0) == "not separable"


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_sign_test_is_the_share_of_coin_throws_at_least_as_uneven(
    gained: int, lost: int
) -> None:
    throws = list(product((-1, 1), repeat=gained + lost))
    as_uneven = [throw for throw in throws if abs(sum(throw)) >= abs(gained - lost)]
    assert sign_test(gained, lost) == pytest.approx(len(as_uneven) / len(throws))


def test_four_gained_answers_are_too_few_although_their_mean_is_two_standard_errors() -> None:
    found = compare_accuracy(judged(4, 0, 996))
    assert found is not None
    assert found.stderr is not None
    assert found.mean / found.stderr > 1.96
    assert found.outcome == "not separable"


def test_many_gained_answers_are_separable_and_unchanged_ones_the_same() -> None:
    gained, unchanged = compare_accuracy(judged(20, 3, 77)), compare_accuracy(judged(0, 0, 100))
    assert gained is not None
    assert unchanged is not None
    assert (gained.mean, gained.outcome) == (pytest.approx(0.17), "separable")
    assert (unchanged.mean, unchanged.outcome) == (0.0, "the same")


def test_an_unpaired_comparison_adds_both_errors_and_says_that_it_has_no_pairs() -> None:
    found = compare_unpaired(0.5, 0.03, 0.6, 0.04)
    assert (found.mean, found.stderr) == (pytest.approx(0.1), pytest.approx(0.05))
    assert (found.outcome, found.num_pairs) == ("separable", None)
    assert compare_unpaired(0.5, None, 0.6, 0.04).outcome == "unknown"


def answered(nlls: list[float], correct: list[bool] | None = None) -> list[Item]:
    judged = correct or [True] * len(nlls)
    return [
        item(str(k), nll, right) for k, (nll, right) in enumerate(zip(nlls, judged, strict=True))
    ]


def test_a_share_of_the_gain_is_all_nothing_or_what_is_between() -> None:
    before = [5.0 + k % 3 for k in range(30)]
    after = [value - 3 - 0.1 * (k % 5) for k, value in enumerate(before)]
    for share in (1.0, 0.0, 0.25, -0.5):
        served = [b - share * (b - a) for b, a in zip(before, after, strict=True)]
        found = retained_share(*map(answered, (before, after, served)), "nll")
        assert found.share == pytest.approx(share)
        assert found.stderr == pytest.approx(0, abs=1e-9)
        assert found.reason is None


def test_the_error_of_a_share_is_that_of_drawing_the_items_again() -> None:
    import random
    from statistics import stdev

    draw = random.Random(7)
    before = [draw.gauss(6, 1) for _ in range(200)]
    after = [value - draw.gauss(2, 1) for value in before]
    served = [value + draw.gauss(0.3, 0.5) for value in after]
    found = retained_share(*map(answered, (before, after, served)), "nll")
    shares = []
    for _ in range(400):
        rows = [draw.randrange(200) for _ in range(200)]
        drawn = (answered([column[k] for k in rows]) for column in (before, after, served))
        share = retained_share(*drawn, "nll").share
        assert share is not None
        shares.append(share)
    assert found.stderr == pytest.approx(stdev(shares), rel=0.2)


def test_no_share_of_a_gain_that_noise_explains_or_that_is_none() -> None:
    noise = [1.0 + (-1) ** k * 0.5 for k in range(30)]
    flat, low = [1.0] * 30, [0.5 - 0.01 * (k % 2) for k in range(30)]
    within = retained_share(*map(answered, (flat, noise, low)), "nll")
    assert (within.share, within.reason) == (None, "the gain itself is within noise")
    worse = retained_share(*map(answered, (low, flat, low)), "nll")
    assert (worse.share, worse.reason) == (None, "training gained nothing")
    alone = retained_share(*map(answered, ([1.0], [0.5], [0.5])), "nll")
    assert (alone.share, alone.stderr) == (None, None)


def test_of_accuracy_more_is_a_gain() -> None:
    wrong, right = [k < 10 for k in range(40)], [k < 30 for k in range(40)]
    half = [k < 20 for k in range(40)]
    answers = [answered([1.0] * 40, judged) for judged in (wrong, right, half)]
    assert retained_share(*answers, "correct").share == pytest.approx(0.5)
    assert retained_share(answers[1], answers[0], answers[2], "correct").share is None


def test_the_interval_is_1_96_errors_to_either_side() -> None:
    found = compare_nll(paired([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 3.5, 4.1]))
    assert found is not None
    assert found.stderr is not None
    assert found.interval is not None
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.mean)
    assert high - low == pytest.approx(2 * 1.96 * found.stderr)
    lone = compare_nll(paired([1.0], [2.0]))
    assert lone is not None
    assert lone.interval is None


def test_nll_per_token_weighs_each_text_alike() -> None:
    from dataclasses import replace

    long, short = replace(item("a", 100.0), num_tokens=50), replace(item("b", 3.0), num_tokens=1)
    pairs = [(long, replace(long, nll=150.0)), (short, replace(short, nll=4.0))]
    found = compare_nll(pairs, "nll_per_token")
    assert found is not None
    assert found.mean == pytest.approx(1.0)
    assert compare_nll(paired([1.0], [2.0]), "nll_per_token") is None, "their number is unknown"
