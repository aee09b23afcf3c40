from __future__ import annotations

from pathlib import Path

import fake_run
import pytest

from bitrank import paths, runs
from bitrank.errors import UserError


def test_records_and_item_logs_are_read(tmp_path: Path) -> None:
    run = runs.read_run(*fake_run.write_run(tmp_path))
    assert run.missing == []
    assert run.benchmarks == ["piqa", "wiki"]
    assert len(run.items["adapter", "task"]) == fake_run.NUM_ITEMS
    assert run.find("prepare", "result", "splits", "train", "num_rows") == 1152


def test_what_is_missing_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    results, folders = fake_run.write_run(tmp_path)
    paths.record("measure", results).unlink()
    (folders["merged"] / "task.jsonl").unlink()
    run = runs.read_run(results, folders)
    assert run.missing == ["measure"]
    assert ("merged", "task") not in run.items
    assert ("adapter", "task") in run.items


def test_no_record_at_all_is_a_fault_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="results holds no record"):
        runs.read_run(tmp_path / "results", {})


def test_an_item_log_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    results, folders = fake_run.write_run(tmp_path)
    log = folders["adapter"] / "task.jsonl"
    log.write_text(log.read_text().replace("task-0", "task-x", 1))
    with pytest.raises(UserError, match=r"task\.jsonl is not the item log .*evaluate-adapter"):
        runs.read_run(results, folders)
