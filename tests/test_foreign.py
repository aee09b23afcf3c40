"""Results of PEFT's method comparison beside a sweep: read, marked, and never ranked.

The files are made here in that format, with invented numbers.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from fake_project import ROOT
from fake_study import write_study

from bitrank.errors import UserError
from bitrank.foreign import ForeignError, foreign_table, read_foreign
from bitrank.sweep_report import write_sweep_report
from bitrank.tables import to_csv

NEW: dict[str, Any] = {
    "run_info": {
        "created_at": "2026-03-04T05:06:07+00:00", "total_time": 12.5, "peft_branch": "main",
        "experiment_name": "lora/toy-3B-rank4", "error_msg": "",
        "train_config": {"model_id": "example/toy-3B", "dtype": "bfloat16", "seed": 7,
                         "max_steps": 20, "batch_size": 2},
        "peft_config": {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    },
    "train_info": {
        "accelerator_memory_reserved_avg": 100, "accelerator_memory_max": 3 * 2**30,
        "accelerator_memory_reserved_99th": 200, "train_time": 10.25, "file_size": 4096,
        "num_trainable_params": 1234, "num_total_params": 99999, "status": "success",
        "metrics": [
            {"step": 10, "valid accuracy": 0.2, "train loss": 1.5, "tokens / sec": 100.0},
            {"step": 20, "valid accuracy": 0.3, "train loss": 1.2, "tokens / sec": 300.0},
            {"step": 20, "test accuracy": 0.875, "train loss": 1.2, "forgetting": 0.0625},
        ],
    },
    "meta_info": {
        "model_info": {"sha": "0" * 40},
        "dataset_info": {"toymath": {"sha": "1" * 40}, "toyschool": {"sha": "2" * 40}},
        "package_info": {"peft-version": "9.8.7", "torch-version": "6.5.4"},
        "system_info": {"system": "Linux", "accelerator": "Example GPU"},
    },
}  # fmt: skip


def make(**changes: Any) -> dict[str, Any]:
    """`NEW` with other values at dotted keys, `__` for the dot; `...` takes a key away."""
    body = copy.deepcopy(NEW)
    for name, value in changes.items():
        *where, last = name.split("__")
        inner = body
        for part in where:
            inner = inner[part]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return body


def write(folder: Path, name: str = "run.json", **changes: Any) -> Path:
    file = folder / name
    file.write_text(json.dumps(make(**changes)))
    return file


def test_a_run_is_read_with_its_units(tmp_path: Path) -> None:
    (run,) = read_foreign([write(tmp_path)])
    assert (run.method, run.rank, run.seed, run.accuracy) == ("LORA", 4, 7, 0.875)
    assert (run.peak_bytes, run.adapter_bytes, run.forgetting) == (3 * 2**30, 4096, 0.0625)
    assert (run.tokens_per_second, run.hardware) == (200.0, "Example GPU")
    assert (run.tasks, run.packages) == ("toymath, toyschool", "peft 9.8.7, torch 6.5.4")


def test_older_files_named_memory_and_gpu_otherwise(tmp_path: Path) -> None:
    body = make(meta_info__system_info={"gpu": "Old GPU"})
    trained = body["train_info"]
    trained["cuda_memory_max"] = trained.pop("accelerator_memory_max")
    del trained["metrics"][-1]["forgetting"]
    (tmp_path / "old.json").write_text(json.dumps(body))
    (run,) = read_foreign([tmp_path])
    assert (run.peak_bytes, run.hardware, run.forgetting) == (3 * 2**30, "Old GPU", None)


def test_full_fine_tuning_has_no_rank_and_what_is_unknown_is_not_zero(tmp_path: Path) -> None:
    write(tmp_path, run_info__peft_config=None, train_info__accelerator_memory_max=0)
    table = foreign_table(read_foreign([tmp_path]))
    row = dict(zip((c.key for c in table.columns), table.rows[0], strict=True))
    assert row["method"].text == "full fine-tuning"
    assert row["rank"].value is None
    assert row["peak_bytes"].text == "unknown"


def test_a_run_that_did_not_end_is_shown_as_such(tmp_path: Path) -> None:
    write(tmp_path, train_info__status="canceled", train_info__metrics=[])
    (run,) = read_foreign([tmp_path])
    assert (run.status, run.accuracy, run.tokens_per_second) == ("canceled", None, None)


def test_rows_stand_in_the_order_of_their_names_not_of_what_they_reached(tmp_path: Path) -> None:
    for name, accuracy in (("c", 0.9), ("a", 0.1), ("b", 0.5)):
        metrics = [{"step": 1, "test accuracy": accuracy}]
        write(tmp_path, f"{name}.json", run_info__experiment_name=name,
              train_info__metrics=metrics)  # fmt: skip
    names = [row[0].text for row in foreign_table(read_foreign([tmp_path])).rows]
    assert names == ["foreign: a", "foreign: b", "foreign: c"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run_info__experiment_name": ...}, "`run_info.experiment_name` is missing"),
        ({"train_info": []}, "`train_info.status` is missing"),
        ({"train_info__num_trainable_params": "x"}, "`train_info.num_trainable_params` is 'x'"),
        ({"train_info__train_time": True}, "`train_info.train_time` is True"),
        ({"train_info__metrics": []}, 'no entry with "test accuracy"'),
        ({"train_info__metrics": [{"test accuracy": 87.5}]}, "is 87.5, which is no share"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_format_is_named_by_file_and_key(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(ForeignError) as caught:
        read_foreign([file])
    assert str(file) in str(caught.value)
    assert expected in str(caught.value)


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.json", run_info__created_at=...)
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text('["a sweep of ours"]')
    with pytest.raises(ForeignError) as caught:
        read_foreign([tmp_path])
    assert "b.json: is not JSON" in str(caught.value)
    assert all(name in str(caught.value) for name in ("a.json", "c.json"))


def test_a_path_that_is_not_there_or_holds_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_foreign([tmp_path / "nowhere.json"])
    with pytest.raises(UserError, match="holds no"):
        read_foreign([tmp_path])


def test_the_report_marks_them_and_says_nothing_else_because_of_them(tmp_path: Path) -> None:
    sweep = write_study(tmp_path, seeds=(0, 1), count=40)
    alone = write_sweep_report(sweep, ROOT / "conf" / "claims")
    tables = {f.name: f.read_text() for f in (sweep / "report/tables").glob("*.csv")}
    (tmp_path / "theirs").mkdir()
    file = write(tmp_path / "theirs")
    beside = write_sweep_report(sweep, ROOT / "conf" / "claims", [file])
    assert beside == alone
    page = (sweep / "report" / "report.md").read_text()
    assert "Foreign results" in page
    assert "foreign: lora/toy-3B-rank4" in page
    assert "no row is ranked with the sweep's own" in page
    now = {f.name: f.read_text() for f in (sweep / "report/tables").glob("*.csv")}
    assert now.pop("foreign.csv") == to_csv(foreign_table(read_foreign([file])))
    assert now == tables, "no other table changes"
