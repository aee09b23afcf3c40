"""When two runs of a point are the same, near, or different, and in what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_study import answer, change

from bitrank import identity, records
from bitrank.comparison import TOLERANCE, Comparison, compare, compare_or_fail
from bitrank.records import Record

RESULT = {"adapter_hash": "a" * 64, "losses": [{"step": 1, "loss": 2.5}], "num_rows": 768}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A point and its re-run: two records and an item log each."""
    folders = tmp_path / "kept", tmp_path / "again"
    for folder in folders:
        log = folder / "items" / "adapter" / "task.jsonl"
        records.write_items(log, answer("task", 1.2, 20))
        results = {
            "train": RESULT,
            "evaluate-adapter": {"tasks": {"task": {"nll": 1.2}},
                                 "items": {"task": identity.hash_file(log)}},
        }  # fmt: skip
        for stage, result in results.items():
            seen = {"wall_seconds": 3.0, "environment": {"threads": 2, "packages": {"torch": "2"}}}
            record = Record(stage=stage, treatment={}, result=result, observation=seen)
            records.write_record(record, folder / "results" / f"{stage}.json")
    return folders


def both(pair: tuple[Path, Path]) -> Comparison:
    return compare("k", *pair)


def change_loss(folder: Path, loss: float, **others: object) -> None:
    change(folder, "train", "result", {"losses": [{"step": 1, "loss": loss}], **others})


def change_items(folder: Path, values: Mapping[str, Any]) -> None:
    """Of the first item; the record gets the hash of the new log."""
    log = folder / "items" / "adapter" / "task.jsonl"
    rows = records.read_jsonl(log)
    rows[0] = {**rows[0], **values}
    records.write_jsonl(log, rows)
    change(folder, "evaluate-adapter", "result", {"items": {"task": identity.hash_file(log)}})


def test_equal_results_are_bit_identical_whatever_was_observed(pair: tuple[Path, Path]) -> None:
    change(pair[1], "train", "observation", {"wall_seconds": 99.0})
    found = both(pair)
    assert found.verdict == "bit-identical"
    assert found.is_good
    assert not found.differences
    assert found.num_compared > 5


def test_rounding_is_within_tolerance_and_the_hash_that_follows_does_not_decide(
    pair: tuple[Path, Path],
) -> None:
    change_loss(pair[1], 2.5 * (1 + TOLERANCE / 2), adapter_hash="b" * 64)
    found = both(pair)
    assert found.verdict == "within tolerance"
    assert found.is_good
    assert {d.field for d in found.differences} == {"result.losses.0.loss", "result.adapter_hash"}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_rows": 769},
        {"num_rows": 768.0},
        {"adapter_hash": "b" * 64},
        {"losses": [{"step": 1, "loss": 2.5 * (1 + 3 * TOLERANCE)}]},
        {"losses": []},
        {"losses": [{"step": 1, "loss": None}]},
        {"new": 1},
    ],
)
def test_what_is_no_rounding_is_different(pair: tuple[Path, Path], changes: dict[str, Any]) -> None:
    change(pair[1], "train", "result", changes)
    found = both(pair)
    assert found.verdict == "different"
    assert not found.is_good
    (difference,) = found.differences
    assert difference.file == "results/train.json"
    assert "was kept" in str(difference)
    assert "came out" in str(difference)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"nll": 1.0000001}, "different"),
        ({"doc_hash": "0" * 64}, "different"),
        ({"prediction": " z"}, "different"),
    ],
)
def test_item_logs_are_compared_item_by_item(
    pair: tuple[Path, Path], values: dict[str, Any], verdict: str
) -> None:
    change_items(pair[1], values)
    found = both(pair)
    assert found.verdict == verdict
    (name,) = values
    assert any(d.field == f"line 1.{name}" for d in found.differences)
    assert len(found.differences) == 2, "the value and the log's hash"


def test_an_item_that_is_near_is_within_tolerance(pair: tuple[Path, Path]) -> None:
    line = records.read_jsonl(pair[0] / "items" / "adapter" / "task.jsonl")[0]
    change_items(pair[1], {"nll": line["nll"] * (1 + TOLERANCE / 2)})
    assert both(pair).verdict == "within tolerance"


def test_a_log_that_is_missing_or_shorter_is_different(pair: tuple[Path, Path]) -> None:
    log = pair[1] / "items" / "adapter" / "task.jsonl"
    records.write_jsonl(log, records.read_jsonl(log)[:-1])
    assert [d.field for d in both(pair).differences] == ["items"]
    log.unlink()
    assert [(d.kept, d.found) for d in both(pair).differences] == [("a file", "no file")]


def test_another_setting_is_told_beside_it_and_decides_nothing(pair: tuple[Path, Path]) -> None:
    environment = {"threads": 4, "packages": {"torch": "3"}}
    change(pair[1], "train", "observation", {"environment": environment})
    found = both(pair)
    assert found.verdict == "bit-identical"
    assert list(found.setting) == ["threads: 2 then, 4 now", "packages.torch: 2 then, 3 now"]
    assert "  it ran elsewhere: threads: 2 then, 4 now" in list(found.tell())


def test_of_many_differences_the_worst_are_told_and_the_others_counted(
    pair: tuple[Path, Path],
) -> None:
    near = {f"near{n}": 1.0 for n in range(20)}
    change(pair[0], "train", "result", {**near, "zz": 1})
    change(pair[1], "train", "result", {**dict.fromkeys(near, 1 + TOLERANCE / 2), "zz": 2})
    lines = list(both(pair).tell())
    assert lines[0].startswith("k: different: 21 of ")
    assert "result.zz: 1 was kept, 2 came out" in lines[1]
    assert lines[-1] == "  and 13 more"


def test_records_that_cannot_be_read_are_a_failure_of_the_point(pair: tuple[Path, Path]) -> None:
    (pair[1] / "results" / "train.json").write_text(json.dumps("no record"))
    found = compare_or_fail("k", *pair)
    assert found.verdict == "failed"
    assert not found.is_good
    assert "train.json" in next(iter(found.tell()))
