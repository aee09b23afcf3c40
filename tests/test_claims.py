"""Claims as data: what stands in conf/claims can be read, what is wrong is told all at once."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from fake_project import ROOT

from bitrank import claims, evidence
from bitrank.claims import ClaimsError, Metric, read_claims
from bitrank.errors import UserError
from bitrank.records import canonical_json

GOOD: dict[str, Any] = {
    "statement": "LoRA trains few parameters.", "source": "a paper", "reading": "the share",
    "metric": "trainable_share",
    "contrast": {"kind": "run", "fits": [{"field": "adapter.method", "values": ["lora"]}]},
    "threshold": {"of": "value", "at_least": None, "at_most": 0.02},
    "conditions": [], "universal": True, "predicted": False,
}  # fmt: skip
PAIR = {
    "kind": "pair", "first": [{"field": "adapter.rank", "values": ["smallest"]}],
    "second": [{"field": "adapter.rank", "values": ["largest"]}], "may_differ": ["adapter.rank"],
    "equal": "configuration", "first_answers": "adapter", "second_answers": "adapter",
}  # fmt: skip
CHANGE = {"of": "relative change", "at_least": 0.1, "at_most": None}


def write(folder: Path, name: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(canonical_json({**GOOD, **changes}))
    return folder


def faults(folder: Path) -> list[str]:
    with pytest.raises(ClaimsError) as caught:
        read_claims(folder)
    return caught.value.faults


def test_every_claim_of_the_project_can_be_read() -> None:
    found = read_claims(ROOT / "conf" / "claims")
    assert len(found) >= 15
    assert all(claim.source and claim.reading for claim in found.values())
    assert {claim.metric for claim in found.values()} >= {"acc", "train_peak_bytes"}
    equal = {c.contrast.equal for c in found.values() if isinstance(c.contrast, claims.Pair)}
    assert equal == {"configuration", "memory"}


def test_every_metric_is_described_and_can_be_looked_up() -> None:
    names = set(typing.get_args(Metric))
    assert names == set(evidence.METRICS)
    kinds = (evidence.COUNTS, evidence.OF_EACH_RUN, evidence.TIMES, evidence.ANSWERS,
             {evidence.BENCHMARK_RISE})  # fmt: skip
    assert sorted(name for kind in kinds for name in kind) == sorted(names)


def test_a_claim_is_read_by_its_file_name(tmp_path: Path) -> None:
    found = read_claims(write(tmp_path / "c", "few", contrast=PAIR, metric="acc", threshold={
        "of": "difference", "at_least": 0.01, "at_most": None,
    }))  # fmt: skip
    assert isinstance(found["few"].contrast, claims.Pair)
    assert found["few"].threshold.at_least == 0.01


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metric": "speed"}, "`metric` must be one of train_peak_bytes"),
        ({"universal": "yes"}, "`universal` must be true or false"),
        ({"universal": False}, "`conditions` must not be empty unless the claim is universal"),
        ({"source": " "}, "`source` must not be empty"),
        ({"predicted": True}, "`predicted` does not agree"),
        ({"extra": 1}, "`extra` is not a known key"),
        ({"contrast": {**PAIR, "equal": "time"}}, "`contrast.equal` must be one of"),
        ({"contrast": PAIR}, "`threshold.of` must be value of a run, and a change of a pair"),
        ({"contrast": {"kind": "each"}}, "`contrast.kind` must be one of pair, run"),
        ({"contrast": {"kind": "run", "fits": [{"field": "adapter.rank", "values": [8]}]}},
         "`contrast.fits[0].values[0]` must be text, got 8"),
        ({"contrast": {"kind": "run", "fits": [{"field": "a", "values": []}]}},
         "`contrast.fits[0].values` must not be empty"),
        ({"threshold": {"of": "value", "at_least": None, "at_most": None}},
         "`threshold.at_least` and `at_most` must not both be null"),
        ({"threshold": {"of": "value", "at_least": 0.5, "at_most": 0.1}},
         "`threshold.at_least` must not be above `at_most`"),
        ({"metric": "acc"}, "`contrast.kind` must be pair for acc"),
        ({"metric": "benchmark_nll_rise", "contrast": PAIR, "threshold": CHANGE},
         "`contrast.kind` must be run for benchmark_nll_rise"),
        ({"metric": "nll", "contrast": PAIR, "threshold": CHANGE},
         "`threshold.of` must be difference for nll"),
        ({"metric": "train_step_seconds", "contrast": PAIR,
          "threshold": {**CHANGE, "of": "difference"}},
         "`threshold.of` must be relative change for train_step_seconds"),
        ({"threshold": {"of": "value", "at_least": None}}, "`threshold.at_most` is missing"),
    ],
)  # fmt: skip
def test_a_fault_names_file_and_key(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = write(tmp_path / "c", "bad", **changes)
    assert any(fault.startswith(f"{folder / 'bad.yaml'}: {named}") for fault in faults(folder))


def test_the_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", "one", metric="speed", universal=3)
    write(folder, "two", source="")
    write(folder, "good")
    (folder / "three.yaml").write_text("statement: [")
    (folder / "four.yaml").write_text("- 1\n")
    told = faults(folder)
    assert len(told) == 5
    assert [sum(name in fault for fault in told) for name in ("one", "two", "three", "four")] == [
        2, 1, 1, 1,
    ]  # fmt: skip
    assert not any("good" in fault for fault in told)


def test_no_claims_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no claim"):
        read_claims(tmp_path)
