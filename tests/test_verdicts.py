"""Verdicts of claims on sweeps whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_study
import pytest
from fake_sweep import name_point

from bitrank.claims import Claim, EachRun, Pair, Selector, Threshold
from bitrank.predicted import llama_65b_bytes
from bitrank.records import read_record
from bitrank.resampling import Estimate, exact
from bitrank.study import Study, read_study
from bitrank.verdicts import Verdict, hold_against, judge


def fits(field: str, *values: str) -> list[Selector]:
    return [Selector(field=field, values=list(values))]


PRECISIONS = Pair(
    kind="pair", first=fits("precision.quant_type", "null"),
    second=fits("precision.quant_type", "nf4", "fp4"), may_differ=["precision"],
    equal="configuration", first_answers="adapter", second_answers="adapter",
)  # fmt: skip
RANKS = replace(
    PRECISIONS, first=fits("adapter.rank", "smallest"), second=fits("adapter.rank", "largest"),
    may_differ=["adapter.rank"],
)  # fmt: skip
LORA = EachRun(kind="run", fits=fits("adapter.method", "lora"))


def claim(metric: Any, contrast: Pair | EachRun, **bounds: Any) -> Claim:
    of = bounds.pop("of", "relative change")
    bounds = {"at_least": None, "at_most": None, **bounds}
    conditions = bounds.pop("conditions", [])
    return Claim(
        statement="It is so.", source="someone", reading="as it says", metric=metric,
        contrast=contrast, threshold=Threshold(of=of, **bounds), conditions=conditions,
        universal=not conditions, predicted=str(metric).startswith("predicted_"),
    )  # fmt: skip


def verdict(study: Study, asked: Claim) -> Verdict:
    return judge(study, "asked", asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_study.write_study(
        tmp_path_factory.mktemp("sweep"), seeds=(0, 1, 2, 3),
        nll=lambda precision, rank: 1.6 - 0.1 * rank + (0.002 if precision == "nf4" else 0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study(folder)


LIMITS = Threshold(of="value", at_least=-0.5, at_most=0.5)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.5, 0.5, "holds"), (-0.6, 0.0, "not separable"), (0.4, 0.6, "not separable"),
        (0.51, 0.6, "refuted"), (-0.9, -0.51, "refuted"), (None, None, "not separable"),
    ],
)  # fmt: skip
def test_where_the_interval_lies_decides(
    low: float | None, high: float | None, outcome: str
) -> None:
    assert hold_against(Estimate(mean=0.0, low=low, high=high), LIMITS) == outcome


def test_a_threshold_of_one_side_has_no_other() -> None:
    at_most = Threshold(of="value", at_least=None, at_most=0.0)
    assert hold_against(exact(-1e9), at_most) == "holds"
    assert hold_against(exact(1e-9), at_most) == "refuted"


def test_a_count_is_decided_without_noise_in_each_place(study: Study) -> None:
    found = verdict(study, claim("train_peak_bytes", PRECISIONS, at_least=-0.9, at_most=-0.1))
    assert found.outcome == "holds"
    assert [place.where for place in found.places] == ["fp32-r2 → nf4-r2", "fp32-r8 → nf4-r8"]
    peaks = [run.run.find("measure", "result", "train_memory", "peak_bytes")
             for c in study.configurations[:2] for run in c.runs[:1]]  # fmt: skip
    first = found.places[0].found
    assert isinstance(first, Estimate)
    assert first.mean == pytest.approx(peaks[1] / peaks[0] - 1)
    assert first.is_exact
    assert set(found.places[0].keys) == {
        name_point(p, 2, s) for p in ("fp32", "nf4") for s in (0, 1, 2, 3)
    }


def test_only_a_claim_made_under_these_conditions_is_refuted(study: Study) -> None:
    wrong = {"at_most": -0.99}
    here, elsewhere = fits("model.name", "tiny"), fits("model.name", "Llama-2-7B")
    outcomes = [
        verdict(study, claim("train_peak_bytes", PRECISIONS, **wrong, conditions=c)).outcome
        for c in ([], here, elsewhere, [*here, *elsewhere])
    ]
    assert outcomes == ["refuted", "refuted", "differs here", "differs here"]
    held = claim("train_peak_bytes", PRECISIONS, at_most=-0.1, conditions=elsewhere)
    assert verdict(study, held).outcome == "holds"


def test_one_counterexample_refutes(study: Study) -> None:
    found = verdict(study, claim("trainable_share", LORA, of="value", at_most=0.01))
    assert found.outcome == "refuted"
    assert [place.outcome for place in found.places] == ["holds", "holds", "refuted", "refuted"]


def test_times_are_compared_step_by_step(study: Study) -> None:
    slower = verdict(study, claim("train_step_seconds", PRECISIONS, at_least=0.2, at_most=0.3))
    assert slower.outcome == "holds"
    faster = verdict(study, claim("train_step_seconds", PRECISIONS, at_most=-0.01))
    assert faster.outcome == "refuted"
    found = slower.places[0].found
    assert isinstance(found, Estimate)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.25 < found.high
    assert found.high - found.low < 0.05  # far below the spread of the steps themselves


def test_a_time_without_its_spread_decides_nothing(study: Study) -> None:
    found = verdict(study, claim("decode_step_seconds", PRECISIONS, at_most=-0.5))
    assert found.outcome == "not separable"


def test_a_disturbed_machine_is_not_a_measurement(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(8,), seeds=(0, 1))
    for seed in (0, 1):
        busy = folder / name_point("nf4", 8, seed)
        measured = read_record(busy / "results" / "measure.json").observation["train_speed"]
        fake_study.change(busy, "measure", "observation", {
            "train_speed": {**measured, "cpu_seconds_per_second": 1.0},
        })  # fmt: skip
    asked = claim("train_step_seconds", PRECISIONS, at_least=0.2, at_most=0.3)
    found = verdict(read_study(folder), asked)
    assert found.outcome == "not measured here"
    assert "the machine had something else to do" in str(found.missing)


def test_answers_are_compared_over_items_and_seeds(study: Study) -> None:
    gain = verdict(study, claim("nll", RANKS, of="difference", at_most=-0.1))
    assert (gain.outcome, len(gain.places)) == ("holds", 2)
    nothing = verdict(study, claim("nll", RANKS, of="difference", at_least=0.0))
    assert nothing.outcome == "refuted"
    close = verdict(study, claim("acc", PRECISIONS, of="difference", at_least=-0.5, at_most=0.5))
    assert close.outcome == "holds"
    sharp = verdict(study, claim("acc", PRECISIONS, of="difference", at_least=0, at_most=1e-6))
    assert sharp.outcome == "not separable"


def test_the_interval_is_wider_where_a_claim_is_tested_in_more_places(study: Study) -> None:
    only = fits("adapter.rank", "8")
    both = claim("nll", PRECISIONS, of="difference", at_most=1.0)
    one = claim("nll", replace(PRECISIONS, first=[*PRECISIONS.first, *only]),
                of="difference", at_most=1.0)  # fmt: skip
    widths = []
    for asked in (both, one):
        found = verdict(study, asked).places[-1].found
        assert isinstance(found, Estimate)
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[0] > widths[1]


def test_forgetting_is_told_of_each_benchmark(study: Study) -> None:
    found = verdict(study, claim("benchmark_nll_rise", LORA, of="value", at_most=0.05))
    assert found.outcome == "refuted"
    assert {place.where for place in found.places} == {
        f"{c.name} (wiki)" for c in study.configurations
    }


def test_what_is_missing_is_named(study: Study, tmp_path: Path) -> None:
    full = replace(PRECISIONS, first=fits("adapter.method", "full"))
    found = verdict(study, claim("train_peak_bytes", full, at_most=-0.9))
    assert found.outcome == "not measured here"
    assert found.missing == "no configuration with adapter.method = full"
    rates = replace(RANKS, first=fits("train.learning_rate", "smallest"),
                    second=fits("train.learning_rate", "largest"),
                    may_differ=["train.learning_rate"])  # fmt: skip
    found = verdict(study, claim("nll", rates, of="difference", at_least=0.0))
    assert found.missing == "one value of train.learning_rate only"
    crossed = replace(PRECISIONS, first=[*PRECISIONS.first, *fits("adapter.rank", "2")],
                      second=[*PRECISIONS.second, *fits("adapter.rank", "8")])  # fmt: skip
    found = verdict(study, claim("train_peak_bytes", crossed, at_most=0))
    assert found.missing == (
        "fp32-r2 and nf4-r8 differ in adapter.rank, train.treatment.adapter.rank too"
    )
    served = replace(PRECISIONS, first_answers="merged_then_quantized")
    found = verdict(study, claim("acc", served, of="difference", at_least=0))
    assert "no item logs of merged_then_quantized and adapter" in str(found.missing)
    seeds = {name_point("fp32", 8, 0): "failed", name_point("nf4", 8, 1): "failed"}
    apart = read_study(fake_study.write_study(tmp_path, ranks=(8,), seeds=(0, 1), statuses=seeds))
    found = verdict(apart, claim("train_peak_bytes", PRECISIONS, at_most=0))
    assert found.missing == "fp32-r8 and nf4-r8 have no seed in common"


def test_a_number_that_no_record_has_is_missing_and_not_zero(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(8,), seeds=(0,))
    point = name_point("nf4", 8, 0)
    (folder / point / "results" / "measure.json").unlink()
    study = read_study(folder)
    found = verdict(study, claim("train_peak_bytes", PRECISIONS, at_most=-0.1))
    assert found.outcome == "not measured here"
    assert f"the records do not have it: {point}" in str(found.missing)
    found = verdict(study, claim("train_step_seconds", PRECISIONS, at_most=-0.1))
    assert found.outcome == "not measured here"


def test_equal_memory_is_another_contrast_than_equal_configuration(
    study: Study, tmp_path: Path
) -> None:
    same = replace(PRECISIONS, equal="memory")
    asked = claim("train_step_seconds", same, at_most=0.5)
    found = verdict(study, asked)
    assert found.outcome == "not measured here"
    assert "no two hold as much to within 5%; the nearest are fp32-r" in str(found.missing)
    assert "train.gradient_checkpointing" in str(found.missing)
    folder = fake_study.write_study(tmp_path, ranks=(8,))
    for seed in (0, 1, 2):
        fake_study.change(folder / name_point("nf4", 8, seed), "measure", "result",
                          {"train_memory": {"peak_bytes": 730_000_000}})  # fmt: skip
        fake_study.change(folder / name_point("fp32", 8, seed), "measure", "result",
                          {"train_memory": {"peak_bytes": 740_000_000}})  # fmt: skip
    assert verdict(read_study(folder), asked).outcome == "holds"


def test_the_live_types_of_the_adapter_tell_whether_it_is_quantized(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(8,), precisions=("nf4",), seeds=(0,))
    asked = claim("quantized_adapter_share", LORA, of="value", at_least=1.0)
    assert verdict(read_study(folder), asked).outcome == "refuted"
    fake_study.change(folder / name_point("nf4", 8, 0), "train", "treatment", {
        "adapter": {"method": "lora", "rank": [8], "dtypes": ["uint8"]},
    })  # fmt: skip
    assert verdict(read_study(folder), asked).outcome == "holds"


def test_one_seed_of_a_number_that_seeds_move_decides_nothing(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("nf4",), seeds=(0,))
    asked = claim("generalization_gap", RANKS, of="difference", at_least=-100.0)
    assert verdict(read_study(folder), asked).outcome == "not separable"


def test_the_prediction_of_65b_is_near_the_published_measurement() -> None:
    """QLoRA, 2023: 45.0 GB at rank 64, with the adapter in 16 bits."""
    adapter = 12_492_800 * 64
    assert llama_65b_bytes(4.127, 64) - adapter * (16 - 10) == pytest.approx(45.0e9, rel=0.05)
    assert llama_65b_bytes(16, 64) > 130e9
