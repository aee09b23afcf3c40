"""benchmarks/ compares like with like only, and reads what the other side wrote as it was meant."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import determinism
import lm_eval_cli
import reporting
import startup
import trl_contestants
import trl_speed
from bitrank import config, data, identity, models, records, tasks
from bitrank.errors import UserError
from bitrank.tasks import Task
from reporting import Run

MATCHED = {"rows_hash": "a", "adapter": {"rank": [8]}, "threads": 2}
CHOOSING = Task(
    "task",
    [{"prompt": "p", "answer": " a"}, {"prompt": "q", "answer": " b"}],
    {"output_type": "multiple_choice", "doc_to_choice": [" a", " b"], "doc_to_target": "answer"},
)


def run(contestant: str, speed: float, loss: float = 2.0, **matched: object) -> Run:
    measured = {"tokens_per_second": speed, "tensor_peak_bytes": 100 * speed, "first_loss": loss}
    return Run(contestant, {**MATCHED, **matched}, measured)


def test_a_ratio_is_that_of_the_medians() -> None:
    ours = [run("bitrank", speed) for speed in (180.0, 200.0, 900.0)]
    theirs = [run("trl", speed) for speed in (90.0, 100.0, 110.0)]
    assert reporting.ratio(ours, theirs, "tokens_per_second") == 2.0
    assert trl_speed.compare([*ours, *theirs], "trl") == {"speed": 2.0, "tensor_peak": 2.0}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rows_hash": "b"}, "rows_hash"),
        ({"adapter": {"rank": [16]}}, "adapter"),
        ({"batch_size": 16}, "batch_size"),
        ({"threads": None, "rows_hash": "b"}, "rows_hash, threads"),
    ],
)
def test_there_is_never_a_ratio_between_runs_that_differ_in_something_else(
    changed: dict[str, Any], named: str
) -> None:
    runs = [run("bitrank", 200.0), run("trl", 100.0, **changed)]
    with pytest.raises(UserError, match=f"bitrank and trl cannot be compared.*: {named}$"):
        trl_speed.compare(runs, "trl")


def test_rounds_of_one_contestant_that_differ_give_no_ratio_either() -> None:
    ours = [run("bitrank", 200.0), run("bitrank", 200.0, threads=4)]
    with pytest.raises(UserError, match="threads"):
        reporting.ratio(ours, [run("trl", 100.0)], "tokens_per_second")


def test_another_loss_on_the_same_rows_gives_no_table() -> None:
    same = [run("bitrank", 1.0, 2.000001), run("trl", 1.0, 2.0)]
    trl_speed.check_same_loss(same)
    with pytest.raises(UserError, match=r"bitrank 2\.000001, trl 2\.000000, trl-grouped 2\.1"):
        trl_speed.check_same_loss([*same, run("trl-grouped", 1.0, 2.1)])


def test_tables_are_aligned_and_results_are_named_by_hardware(tmp_path: Path) -> None:
    assert reporting.table([["a", "b"], ["long", "1"]]) == (
        "| a    | b |\n|------|---|\n| long | 1 |"
    )
    assert reporting.show_spread([3.0, 1.0, 2.0]) == "2.0 [1.0, 3.0]"
    assert reporting.show_spread([3.0], 2) == "3.00"
    cpu = {"cores": 2, "model": "AMD EPYC"}
    assert reporting.hardware_slug({"gpus": [], "cpu": cpu}) == "2-cores-amd-epyc"
    gpus = [{"name": "NVIDIA H100 80GB HBM3"}]
    slug = "1x-nvidia-h100-80gb-hbm3"
    assert reporting.hardware_slug({"gpus": gpus, "cpu": cpu}) == slug
    described = {"hardware": {"gpus": gpus, "cpu": cpu}, "threads": 2}
    reporting.write_result(tmp_path, "speed", {"ratio": 2.0}, described)
    written = json.loads((tmp_path / f"speed-{slug}.json").read_text())
    assert written == {"benchmark": "speed", "ratio": 2.0, "environment": described}


def test_bitrank_trains_and_reports_all_that_is_compared(
    quantized: Callable[[str], Path],
    prepared: Path,
    compose: Callable[..., config.RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composed = compose("precision=nf4", "runtime.threads=1")
    (tmp_path / "data/base").mkdir(parents=True)
    (tmp_path / "data/base/quantized").symlink_to(quantized("nf4"))
    (tmp_path / "data/prepared").symlink_to(prepared)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "load", lambda: composed)
    report = json.loads(json.dumps(trl_contestants.work("bitrank", warmup=1, steps=2)))
    matched, measured = report["matched"], report["measured"]
    assert (matched["steps"], matched["timed_steps"]) == (3, 2)
    assert matched["activation_checkpointing"] is False
    assert set(trl_speed.DEFINITIONS) <= set(measured)
    assert measured["tokens_per_second"] > 0
    assert 0 <= measured["padding_share"] < 0.5
    with pytest.raises(UserError, match="too few"):
        trl_contestants.work("bitrank", warmup=1, steps=1000)


def test_rows_of_either_data_set_have_one_hash_and_the_longest_are_found(
    original: Path, prepared: Path
) -> None:
    rows = data.encode_split(prepared / "train.jsonl", models.load_tokenizer(original), 128)
    theirs = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
    assert trl_contestants.hash_rows(rows) == trl_contestants.hash_rows(theirs)
    widest = max(len(row.input_ids) for row in rows)
    assert len(rows[trl_contestants.longest(rows, 2)[0]].input_ids) == widest


def test_no_contestant_needs_trl_but_its_own() -> None:
    assert "trl" not in sys.modules


def test_a_task_is_written_for_the_command_line_with_nothing_of_it_changed(prepared: Path) -> None:
    task = tasks.trained_task(prepared)
    written = lm_eval_cli.to_yaml(task, Path("/somewhere/task.jsonl"))
    where = {"test": "/somewhere/task.jsonl"}
    assert written.pop("dataset_kwargs") == {"data_files": where}
    assert (written.pop("dataset_path"), written.pop("task")) == ("json", "bitrank_task")
    assert written == {key: value for key, value in task.config.items() if key != "task"}


def test_what_the_command_line_wrote_becomes_items_and_scores() -> None:
    found = {"alias": "task", "acc,none": 0.5, "acc_stderr,none": "N/A", "name": "task"}
    assert lm_eval_cli.metrics_of(found) == {"acc": 0.5}
    samples = [
        {"resps": [[["-1.5", "True"]], [["-2.5", "False"]]]},
        {"resps": [[["-0.25", "True"]], [["-4.0", "False"]]]},
    ]
    first, second = lm_eval_cli.to_items(CHOOSING, samples)
    assert (first.nll, first.prediction, first.correct) == (1.5, " a", True)
    assert (second.nll, second.prediction, second.correct) == (4.0, " a", False)
    assert lm_eval_cli.loglikelihood(["-7.5"]) == -7.5


def outcome(name: str, accuracy: float, nll: float, documents: str = "") -> lm_eval_cli.Outcome:
    item = records.Item(
        doc_hash=identity.hash_json(documents),
        target=" a",
        prediction=" a",
        correct=True,
        nll=nll,
        choice_nll=None,
        num_tokens=1,
    )
    process = Run(name, {}, {"wall_seconds": 1.0})
    return lm_eval_cli.Outcome(process, {"task": {"acc": accuracy, "nll": nll}}, {"task": [item]})


def test_scores_agree_to_the_last_digit_or_not_at_all() -> None:
    theirs = dataclasses.replace(outcome("lm_eval", 0.5, 1.0), scores={"task": {"acc": 0.5}})
    found = lm_eval_cli.compare("task", outcome("bitrank", 0.5, 1.25), theirs)
    assert found["same_scores"]
    assert found["largest_nll_difference"] == 0.25
    near = lm_eval_cli.compare("task", outcome("bitrank", 0.5 + 2**-53, 1.0), theirs)
    assert near["scores"] == {"acc": (0.5 + 2**-53, 0.5)}
    assert not near["same_scores"]
    with pytest.raises(UserError, match="documents of task"):
        lm_eval_cli.compare("task", outcome("bitrank", 0.5, 1.0, "others"), theirs)


def stage(work: float | None, imports: float) -> dict[str, Any]:
    return {"work_seconds": work, "import_seconds": imports}


def test_work_imports_and_everything_else_add_up_to_the_run() -> None:
    stages = {"train": stage(60.0, 5.0), "measure": stage(30.0, 4.0), "record": stage(None, 1.0)}
    shares = startup.share_of_run(stages, 120.0)
    assert shares["work_share"] == 0.75
    assert (shares["import_seconds"], shares["else_seconds"]) == (10.0, 20.0)
    assert startup.share_of_run(stages, None)["else_seconds"] is None, "unknown is never 0"
    with pytest.raises(UserError, match="another run"):
        startup.share_of_run(stages, 80.0)


def test_import_seconds_of_a_record_are_believed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, observation in {
        "train": {"wall_seconds": 60.0, "import_seconds": 6.5},
        "evaluate-original": {"wall_seconds": 40.0},
        "evaluate-merged": {"wall_seconds": 20.0},
    }.items():
        record = records.Record(stage=name, treatment={}, result={}, observation=observation)
        records.write_record(record, Path(f"data/results/{name}.json"))
    assert startup.describe_stage("train", [1.0])["import_seconds"] == 6.5
    evaluated = startup.describe_stage("evaluate", [3.0, 1.0, 2.0])
    assert (evaluated["processes"], evaluated["work_seconds"]) == (2, 60.0)
    assert evaluated["import_seconds"] == 4.0, "the median, for each of two processes"
    assert startup.describe_stage("report", [1.0])["work_seconds"] is None


def trained(adapter_hash: str, loss: float, *, claimed: bool | None = True) -> records.Record:
    result = {
        "adapter_hash": adapter_hash,
        "losses": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": loss}],
        "validation": [{"step": 0, "loss": 3.0}, {"step": 2, "loss": loss + 1}],
    }
    told = {"determinism": {"deterministic": claimed, "reason": "said so"}}
    return records.Record(stage="train", treatment=told, result=result, observation={})


def test_repeats_that_are_the_same_are_told_so() -> None:
    weights = {"a": torch.ones(3)}
    body = determinism.compare([trained("x", 1.0), trained("x", 1.0)], [weights, weights])
    assert body["same_bytes"]
    assert (body["num_different_adapters"], body["differing_results"]) == (1, [])
    assert body["largest_weight_difference"] == body["largest_loss_difference"] == 0
    determinism.check_claim(body)
    assert "| deterministic: said so" in determinism.show(body)


def test_repeats_that_differ_tell_how_far_and_refute_the_record() -> None:
    first, other = {"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, 4.5])}
    found = [trained("x", 1.0), trained("y", 1.25)]
    body = determinism.compare(found, [first, other])
    assert not body["same_bytes"]
    assert body["differing_results"] == ["adapter_hash", "losses", "validation"]
    assert body["largest_loss_difference"] == 0.25
    assert body["largest_weight_difference"] == 0.5
    assert body["relative_weight_difference"] == pytest.approx(0.1)
    with pytest.raises(
        UserError, match=r"says that training repeats .* differ in adapter_hash, lo"
    ):
        determinism.check_claim(body)
    honest = [trained("x", 1.0, claimed=None), trained("y", 1.25, claimed=None)]
    determinism.check_claim(determinism.compare(honest, [first, other]))
