"""The comparisons of a sweep: what is told apart, from items and seeds that are paired."""

from __future__ import annotations

from pathlib import Path

import fake_study
import numpy as np
import pytest
from fake_sweep import name_point

from bitrank.contrasts import Contrast, compare_all, tabulate
from bitrank.records import Item
from bitrank.study import read_study


def item(doc: str, nll: float | None, correct: bool | None = True) -> Item:
    return Item(doc_hash=doc, target="a", prediction=None, correct=correct, nll=nll,
                choice_nll=None, num_tokens=None)  # fmt: skip


def between(folder: Path) -> dict[tuple[str, str], Contrast]:
    return {(c.first, c.second): c for c in compare_all(read_study(folder))[0]}


def test_items_are_aligned_by_document_over_all_seeds() -> None:
    first = [item("x", 1.0), item("y", 2.0), item("z", 3.0)]
    second = [item("z", 3.5), item("x", 1.25), item("w", 9.0)]
    other = [item("y", 7.0), item("x", 1.75), item("z", None)]
    assert tabulate([(first, second), (first, other)], "nll") == pytest.approx(
        np.array([[0.25], [0.75]])
    )
    assert tabulate([(first, [item("q", 1.0)])], "nll") is None
    assert tabulate([], "nll") is None


def test_every_two_configurations_are_compared_once(tmp_path: Path) -> None:
    found = between(fake_study.write_study(tmp_path))
    assert len(found) == 6
    assert all(contrast.nll is not None for contrast in found.values())
    assert found["fp32-r2", "nf4-r2"].keys == tuple(
        name_point(precision, 2, seed) for seed in (0, 1, 2) for precision in ("fp32", "nf4")
    )


def test_a_large_effect_is_separable_and_a_small_one_is_not(tmp_path: Path) -> None:
    worth = {("fp32", 2): 1.2, ("nf4", 2): 1.201, ("fp32", 8): 0.6, ("nf4", 8): 0.61}
    found = between(fake_study.write_study(
        tmp_path, nll=lambda p, r: worth[p, r], seeds=(0, 1, 2, 3)
    ))  # fmt: skip
    assert found["fp32-r2", "fp32-r8"].verdict == "better"
    assert found["nf4-r2", "fp32-r8"].verdict == "better"
    assert found["fp32-r2", "nf4-r2"].verdict == "not separable"
    accuracy = found["fp32-r2", "fp32-r8"].acc
    assert accuracy is not None
    assert accuracy.mean > 0


def test_seeds_that_disagree_are_noise_however_many_items_there_are(tmp_path: Path) -> None:
    worth = {2: 1.2, 8: 1.1}
    for spread, verdict in ((0.001, "better"), (0.6, "not separable")):
        folder = fake_study.write_study(
            tmp_path / str(spread), precisions=("fp32",), count=600,
            nll=lambda _, rank: worth[rank], seed_spread=spread,
        )  # fmt: skip
        (contrast,) = between(folder).values()
        assert contrast.verdict == verdict


def test_one_seed_is_not_ranked_and_the_same_answers_are_the_same(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("fp32",), seeds=(0,),
                                    nll=lambda _, rank: 0.1 * rank)  # fmt: skip
    (contrast,) = between(folder).values()
    assert contrast.verdict == "one seed: not ranked"
    folder = fake_study.write_study(tmp_path / "same", precisions=("fp32",), seeds=(0, 1),
                                    nll=lambda *_: 1.0, seed_spread=0.0)  # fmt: skip
    (contrast,) = between(folder).values()
    assert contrast.verdict == "the same"


def test_all_of_a_report_are_corrected_together(tmp_path: Path) -> None:
    found, with_controls = compare_all(read_study(fake_study.write_study(tmp_path)))
    family = [*found, *with_controls]
    known = [c for c in family if c.nll is not None and c.nll.p is not None]
    assert len(known) == len(family) == 6 + 4 * 3
    least = min(known, key=lambda c: c.nll.p if c.nll and c.nll.p is not None else 1)
    assert least.nll is not None
    assert least.nll.p is not None
    assert least.nll_adjusted_p == pytest.approx(min(1.0, len(family) * least.nll.p))
    assert {c.first for c in with_controls} == {"original", "quantized", "control"}


def test_nothing_is_compared_across_hardware(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    for seed in (0, 1, 2):
        for stage in ("train", "measure", "evaluate-adapter"):
            fake_study.set_hardware(folder / name_point("nf4", 8, seed), stage, "Other CPU")
    assert len(between(folder)) == 3


def test_without_item_logs_there_is_a_contrast_without_a_verdict(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("fp32",))
    for key in (name_point("fp32", rank, seed) for rank in (2, 8) for seed in (0, 1, 2)):
        (folder / key / "items" / "adapter" / "task.jsonl").unlink()
    (contrast,) = between(folder).values()
    assert (contrast.nll, contrast.verdict) == (None, "no items to compare")
