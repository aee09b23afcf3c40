"""Runs are compared where they differ in nothing else; otherwise the fields that do are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fake_sweep
import pytest
from conftest import ROOT

from bitrank import composition, pairing, paths, records
from bitrank.errors import UserError
from bitrank.pairing import Candidate, matched_pairs
from bitrank.projection import flatten, parse_yaml
from bitrank.records import Record
from bitrank.runs import Run

Train = Callable[..., Record]
HARDWARE = {"cpu": {"model": "CPU 9000", "cores": 2}, "gpus": [], "memory_bytes": 1}


def treated(precision: str, rank: int, seed: int) -> dict[str, Any]:
    """What `train` would tell; hashes follow from what decides them."""
    types = [] if precision == "fp32" else [precision]
    return {
        "base_hash": f"base of {precision}", "original_hash": "o", "data_hash": "d",
        "precision": {"name": precision, "quant_types": types}, "attention": "sdpa",
        "dtypes": {"norms": ["float32"], "adapter": ["float32"]},
        "adapter": {"rank": [rank], "num_trainable_parameters": 100 * rank},
        "trainable": {"num_parameters": 100 * rank, "names_hash": "n"},
        "gradient_checkpointing": False, "seeds": {"init": seed, "order": seed}, "num_steps": 48,
        "optimizer": {"name": "AdamW", "learning_rate": 0.003},
        "determinism": {"deterministic": True, "reason": precision},
    }  # fmt: skip


def make(
    precision: str, rank: int = 8, seed: int = 0, *overrides: str, acc: float = 0.6,
    packages: Mapping[str, str] | None = None, **changes: Any,
) -> Candidate:  # fmt: skip
    """A point as its stages leave it; `changes` of what was read from the live model."""
    given = [f"precision={precision}", f"adapter.rank={rank}", f"seed={seed}", *overrides]
    flat = flat_params(*given)
    treatment = {**treated(precision, rank, seed), **changes}
    seen = {"environment": {"packages": packages or {"torch": "2"}, "hardware": HARDWARE}}
    result = {"first_weights_hash": f"A of rank {rank}, seed {seed}"}
    scored = {"tasks": {"task": {"acc": acc}}}
    found = {
        "train": Record(stage="train", treatment=treatment, result=result, observation=seen),
        "evaluate-adapter": Record(
            stage="evaluate-adapter", treatment={"batch_size": 32, "adapter_hash": str(acc)},
            result=scored, observation={},
        ),
    }  # fmt: skip
    run = Run(records=found, items={})
    facts = dict(pairing._facts(run, flat))
    return Candidate(name=f"{precision}-r{rank}-s{seed}", run=run, facts=facts)


@cache
def flat_params(*given: str) -> dict[str, str]:
    return flatten(parse_yaml(composition.compose_text(list(given), ROOT / "conf")))


def names(found: pairing.Pairing) -> list[tuple[str, str]]:
    return [(pair.first.name, pair.second.name) for pair in found.pairs]


def grid(
    precisions: Sequence[str] = ("fp32", "nf4"), ranks: Sequence[int] = (2, 8),
    seeds: Sequence[int] = (0, 1),
) -> list[Candidate]:  # fmt: skip
    return [make(p, r, s) for p in precisions for r in ranks for s in seeds]


def test_along_the_precision_each_rank_and_seed_is_a_pair_of_its_own() -> None:
    found = matched_pairs(grid(), "precision")
    assert found.axis == "precision.name"
    assert found.refusals == []
    assert names(found) == [
        (f"fp32-r{rank}-s{seed}", f"nf4-r{rank}-s{seed}") for rank in (2, 8) for seed in (0, 1)
    ]
    assert all(pair.values == ("fp32", "nf4") for pair in found.pairs)
    assert "precision.quant_type" in found.pairs[0].differing
    assert "train.treatment.base_hash" in found.pairs[0].differing
    assert not [field for field in found.pairs[0].differing if "adapter" in field]


def test_along_the_rank_values_stand_in_the_order_of_their_numbers() -> None:
    found = matched_pairs(grid(ranks=(16, 2, 8), seeds=(0,)), "adapter.rank")
    assert [pair.values for pair in found.pairs if pair.first.name.startswith("nf4")] == [
        ("2", "8"), ("2", "16"), ("8", "16"),
    ]  # fmt: skip
    assert len(found.between("2", "16")) == 2
    assert found.refusals == []


def test_along_the_seed_all_else_is_equal() -> None:
    found = matched_pairs(grid(precisions=("nf4",), ranks=(2, 8)), "seed")
    assert names(found) == [("nf4-r2-s0", "nf4-r2-s1"), ("nf4-r8-s0", "nf4-r8-s1")]


LIVE = "train.treatment"


@pytest.mark.parametrize(
    ("given", "changes", "named"),
    [
        ((8, 1), {}, ["seeds.init", "seeds.order", "train.result.first_weights_hash",
                      f"{LIVE}.seeds.init", f"{LIVE}.seeds.order"]),
        ((8, 0, "train.learning_rate=0.1"), {}, ["train.learning_rate"]),
        ((8, 0, "precision.weight_dtype=bfloat16"), {}, ["precision.weight_dtype"]),
        ((8, 0, "precision.compute_dtype=bfloat16"), {}, ["precision.compute_dtype"]),
        ((8, 0, "evaluate.batch_size=8"), {}, ["evaluate.batch_size"]),
        ((), {"gradient_checkpointing": True}, [f"{LIVE}.gradient_checkpointing"]),
        ((), {"attention": "eager"}, [f"{LIVE}.attention"]),
        ((), {"dtypes": {"norms": ["bfloat16"], "adapter": ["float32"]}}, [f"{LIVE}.dtypes.norms"]),
        ((), {"original_hash": "x"}, [f"{LIVE}.original_hash"]),
        ((), {"num_steps": 40}, [f"{LIVE}.num_steps"]),
        ((), {"trainable": {"num_parameters": 800, "names_hash": "m"}},
         [f"{LIVE}.trainable.names_hash"]),
        ((), {"packages": {"torch": "3"}}, ["train.observation.environment.packages.torch"]),
    ],
)  # fmt: skip
def test_what_differs_besides_refuses_the_pair_by_name(
    given: tuple[Any, ...], changes: dict[str, Any], named: list[str]
) -> None:
    other = make("nf4", *given, **changes)
    found = matched_pairs([make("fp32"), other], "precision.name")
    assert found.pairs == []
    (refusal,) = found.refusals
    assert list(refusal.differing) == named
    assert (refusal.first.name, refusal.second.name) == ("fp32-r8-s0", other.name)
    assert str(refusal).endswith(f"also differ in {', '.join(named)}")


def test_a_refusal_names_the_partner_that_comes_closest() -> None:
    odd = make("nf4", 8, 0, "train.epochs=2")
    found = matched_pairs([make("fp32"), make("nf4", 4, 3), odd], "precision.name")
    assert [(r.first.name, r.second.name) for r in found.refusals] == [
        ("fp32-r8-s0", odd.name), ("fp32-r8-s0", "nf4-r4-s3"),
    ]  # fmt: skip
    assert found.refusals[0].differing == ("train.epochs",)


def test_a_stage_that_only_one_run_has_is_a_difference() -> None:
    without = make("nf4")
    kept = {name: text for name, text in without.facts.items() if "evaluate-adapter" not in name}
    found = matched_pairs([make("fp32"), replace(without, facts=kept)], "precision.name")
    (refusal,) = found.refusals
    assert refusal.differing == ("evaluate-adapter.treatment.batch_size",)


def test_repeats_of_one_point_are_paired_once_each() -> None:
    found = matched_pairs([make("fp32"), make("fp32"), make("nf4")], "precision.name")
    assert len(found.pairs) == 1
    (refusal,) = found.refusals
    assert refusal.differing == ("the number of repeats",)


def test_an_axis_that_no_run_has_is_a_fault() -> None:
    with pytest.raises(UserError, match=r"no run has a parameter 'adapter\.ranks'"):
        matched_pairs([make("fp32")], "adapter.ranks")


def test_the_points_of_a_sweep_are_read_and_those_that_failed_are_left_out(tmp_path: Path) -> None:
    failed = fake_sweep.name_point("nf4", 2, 1)
    folder = fake_sweep.write_sweep(tmp_path, statuses={failed: "failed"})
    candidates = pairing.read_candidates(folder)
    assert len(candidates) == 7
    found = matched_pairs(candidates, "precision")
    assert len(found.pairs) == 3
    (refusal,) = found.refusals
    assert refusal.first.name == fake_sweep.name_point("fp32", 2, 1)
    assert set(refusal.differing) <= {"adapter.rank", "seeds.init", "seeds.order"}
    found = matched_pairs(candidates, "seed")
    assert len(found.pairs) == 3


def test_live_runs_of_lora_and_qlora_are_a_pair(train: Train, tmp_path: Path) -> None:
    """The records of real trainings, as a single run each: nothing else differs in them."""
    candidates = []
    for name in ("fp32", "nf4"):
        folder = tmp_path / name
        text = composition.compose_text(["experiment=smoke", f"precision={name}"], ROOT / "conf")
        records.write_text(folder / "params.yaml", text)
        record = train(f"precision={name}", folder=f"{name}/adapter")
        records.write_record(record, paths.record("train", folder / "results"))
        candidates.append(pairing.read_candidate(name, folder / "params.yaml", folder / "results"))
    found = matched_pairs(candidates, "precision")
    assert names(found) == [("fp32", "nf4")]
    assert found.refusals == []
    live = {field.split(".")[2] for field in found.pairs[0].differing if ".treatment." in field}
    assert live == {"precision", "base_hash"}
    other = train("precision=nf4", "train.gradient_checkpointing=true", folder="nf4/other")
    records.write_record(other, paths.record("train", tmp_path / "nf4" / "results"))
    candidates[1] = pairing.read_candidate(
        "nf4", tmp_path / "nf4" / "params.yaml", tmp_path / "nf4" / "results"
    )
    (refusal,) = matched_pairs(candidates, "precision").refusals
    assert refusal.differing == ("train.treatment.gradient_checkpointing",)
