"""Records against each other and against their item logs, of a point that is whole or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_study import change, write_study

from bitrank import records
from bitrank.inspection import Inspection
from bitrank.recount import CHAIN, LOGS, SCORES, count, inspect_records


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    study = write_study(root, ranks=(8,), precisions=("nf4",), seeds=(0,), count=50)
    (point,) = (path for path in study.iterdir() if path.is_dir())
    change(point, "merge", "treatment", {"adapter_hash": "a" * 64})
    return point


@pytest.fixture
def point(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def look(point: Path) -> Inspection:
    found = Inspection()
    inspect_records(point.name, point, found)
    return found


def test_a_point_as_its_stages_left_it_has_no_faults(point: Path) -> None:
    found = look(point)
    assert list(found.tell_faults()) == []
    assert min(found.counts[kind] for kind in (CHAIN, LOGS, SCORES)) > 0


@pytest.mark.parametrize("metric", ["acc", "nll", "nll_stderr", "choice_nll", "num_items"])
def test_a_score_that_its_items_do_not_give_is_named(point: Path, metric: str) -> None:
    tasks = dict(records.read_record(point / "results/evaluate-adapter.json").result["tasks"])
    value = tasks["task"][metric]
    tasks["task"] = {**tasks["task"], metric: value + 1e-6 if value < 10 else value + 1}
    change(point, "evaluate-adapter", "result", {"tasks": tasks})
    (fault,) = look(point).faults[SCORES]
    assert fault.file == "results/evaluate-adapter.json"
    assert fault.field == f"result.tasks.task.{metric}"
    assert repr(value)[:6] in fault.detail


def test_the_controls_scores_are_counted_too(point: Path) -> None:
    change(point, "control", "result", {"acc": 0.99})
    (fault,) = look(point).faults[SCORES]
    assert (fault.file, fault.field) == ("results/control.json", "result.acc")


def test_a_log_that_was_edited_or_is_gone_is_not_the_records(point: Path) -> None:
    log = point / "items" / "merged" / "task.jsonl"
    log.write_text(log.read_text().replace('"correct": false', '"correct": true', 1))
    found = look(point)
    assert [fault.file for fault in found.faults[LOGS]] == ["items/merged/task.jsonl"]
    assert any(fault.field.endswith(".acc") for fault in found.faults[SCORES])
    log.unlink()
    (fault,) = look(point).faults[LOGS]
    assert "is missing" in fault.detail


def test_a_stage_that_used_another_adapter_is_named_with_both(point: Path) -> None:
    change(point, "merge", "treatment", {"adapter_hash": "1" * 64})
    (fault,) = look(point).faults[CHAIN]
    assert (fault.file, fault.field) == ("results/merge.json", "adapter")
    assert "1" * 12 in fault.detail
    assert "a" * 12 in fault.detail


def test_a_record_of_another_stage_is_named(point: Path) -> None:
    results = point / "results"
    shutil.copy(results / "fetch.json", results / "quantize.json")
    assert any(f.file == "results/quantize.json" and f.field == "stage"
               for f in look(point).faults[CHAIN])  # fmt: skip


def test_a_record_or_log_that_cannot_be_read_is_a_fault_not_a_traceback(point: Path) -> None:
    (point / "items" / "merged" / "task.jsonl").write_text("{}\n")
    assert any("cannot be read" in fault.detail for fault in look(point).faults[SCORES])
    (point / "results" / "train.json").write_text("{")
    (fault,) = look(point).faults[CHAIN]
    assert "train.json" in fault.detail


def test_what_no_item_knows_is_not_counted() -> None:
    items = [records.Item(doc_hash=str(n), target="", prediction=None, correct=None, nll=float(n),
                          choice_nll=None, num_tokens=2) for n in (1, 3)]  # fmt: skip
    assert count(items) == {
        "num_items": 2, "nll": 2.0, "nll_stderr": 1.0, "nll_per_token": 1.0,
        "nll_per_token_stderr": 0.5,
    }  # fmt: skip
