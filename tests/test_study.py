"""A sweep read as evidence: what is one configuration, what may be compared, what is left out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import fake_study
import fake_sweep
import pytest
from fake_sweep import name_point

from bitrank import identity, paths, records
from bitrank.contrasts import compare_all
from bitrank.errors import UserError
from bitrank.runs import Run
from bitrank.study import Study, kept_apart, paired, read_study
from bitrank.sweep_findings import software_differences, write_warnings
from bitrank.swept_runs import read_served


def read(folder: Path) -> Study:
    return read_study(folder)


def warnings_of(folder: Path) -> str:
    return "\n".join(write_warnings(read_study(folder)))


def test_runs_that_differ_in_seeds_alone_are_one_configuration(tmp_path: Path) -> None:
    study = read(fake_study.write_study(tmp_path))
    assert [c.name for c in study.configurations] == ["fp32-r2", "nf4-r2", "fp32-r8", "nf4-r8"]
    assert study.configurations[1].keys == tuple(name_point("nf4", 2, s) for s in (0, 1, 2))
    assert len(study.settings) == 1
    assert study.left_out == []


def test_runs_are_paired_by_seed_and_not_by_place(tmp_path: Path) -> None:
    missing = {name_point("fp32", 2, 0): "failed", name_point("nf4", 2, 2): "missing"}
    study = read(fake_study.write_study(tmp_path, statuses=missing))
    first, second = study.configurations[:2]
    assert [(a.key, b.key) for a, b in paired(first, second)] == [
        (name_point("fp32", 2, 1), name_point("nf4", 2, 1))
    ]
    assert {left.key for left in study.left_out} == set(missing)


def test_what_two_configurations_differ_in_beside_what_is_compared_is_named(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    first, second, third, _ = read(folder).configurations
    assert kept_apart(first, second, ["precision"]) == []
    assert kept_apart(first, second, ["adapter.rank"])
    assert "adapter.rank" in kept_apart(second, third, ["precision"])
    assert kept_apart(second, third, ["precision", "adapter.rank"]) == []


def test_a_live_treatment_that_differs_refuses_the_comparison_by_name(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("fp32", "nf4"), ranks=(8,))
    fake_study.change(folder / name_point("nf4", 8, 1), "train", "treatment",
                      {"gradient_checkpointing": True})  # fmt: skip
    study = read(folder)
    field = "train.treatment.gradient_checkpointing"
    assert kept_apart(*study.configurations, ["precision"]) == [field]
    assert compare_all(study)[0] == []
    assert f"Not compared: fp32-r8 and nf4-r8 also differ in {field}." in warnings_of(folder)


def test_what_failed_is_told_with_its_reason(tmp_path: Path) -> None:
    failed = name_point("nf4", 8, 1)
    told = warnings_of(fake_study.write_study(tmp_path, statuses={failed: "out of memory"}))
    assert f"Left out: {failed}: out of memory ({fake_sweep.REASON})." in told
    assert "Not all configurations have as many seeds: 2 to 3." in told


def test_a_point_whose_records_cannot_be_read_is_left_out_by_name(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    damaged, torn = name_point("nf4", 8, 1), name_point("nf4", 8, 2)
    paths.record("train", folder / damaged / "results").write_text("{")
    with (folder / torn / "items" / "adapter" / "task.jsonl").open("a") as stream:
        stream.write("\n")
    study = read(folder)
    assert {left.key: left.status for left in study.left_out} == {
        damaged: "unreadable", torn: "unreadable",
    }  # fmt: skip
    assert "train.json is not a bitrank record" in str(study.left_out[0])
    assert "is not the item log" in str(study.left_out[1])


def test_nothing_is_of_one_setting_across_hardware(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    for seed in (0, 1, 2):
        for stage in ("train", "measure", "evaluate-adapter"):
            fake_study.set_hardware(folder / name_point("nf4", 8, seed), stage, "Other CPU")
    study = read(folder)
    assert len(study.settings) == 2
    (other,) = (c for c in study.configurations if "Other CPU" in c.setting)
    assert other.name.startswith("nf4-r8 on Other CPU")
    assert "nothing is compared across that" in warnings_of(folder)


def test_code_is_told_by_its_files_and_not_by_the_commit(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("fp32",))
    for seed in (0, 1, 2):
        for rank in (2, 8):
            key = name_point("fp32", rank, seed)
            fake_study.set_code(folder / key, "1" * 32 if rank == 2 else "2" * 32)
    study = read(folder)
    assert software_differences(study) == ["src/bitrank/trainer.py"]
    assert len(study.settings) == 2
    assert "they differ in src/bitrank/trainer.py" in warnings_of(folder)
    for seed in (0, 1, 2):
        fake_study.set_code(folder / name_point("fp32", 8, seed), "1" * 32)
        fake_study.change(folder / name_point("fp32", 8, seed), "train", "observation",
                          {"environment": {"git_commit": "d" * 40}})  # fmt: skip
    assert software_differences(read(folder)) == []


def test_records_of_an_older_schema_are_read_and_told(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    old = name_point("fp32", 2, 0)
    file = paths.record("train", folder / old / "results")
    body = json.loads(file.read_text())[1]
    file.write_text(json.dumps({"schema_version": 1, **body}))
    assert records.read_version(file) == 1
    assert f"Records of an older schema ({old})" in warnings_of(folder)
    file.write_text(json.dumps([99, body]))
    (left,) = read(folder).left_out
    assert "schema version 99" in str(left)


def test_the_learning_rate_is_chosen_on_the_validation_rows(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("fp32",), ranks=(2, 8))
    for seed in (0, 1, 2):  # the point of rank 8 becomes rank 2 with another learning rate
        point = folder / name_point("fp32", 8, seed)
        text = (folder / name_point("fp32", 2, seed) / "params.yaml").read_text()
        other = re.sub("learning_rate: .*", "learning_rate: 0.1", text)
        records.write_text(point / "params.yaml", other)
        fake_study.change(point, "train", "result",
                          {"validation": [{"step": 72, "loss": 0.5 + 0.01 * seed}]})  # fmt: skip
    chosen = {c.params["train.learning_rate"]: c.is_chosen for c in read(folder).configurations}
    assert chosen == {"0.01": False, "0.1": True}
    for seed in (0, 1, 2):
        fake_study.change(folder / name_point("fp32", 2, seed), "train", "result",
                          {"validation": []})  # fmt: skip
    assert all(c.is_chosen for c in read(folder).configurations)


def test_each_way_to_serve_is_read_as_its_record_names_it(tmp_path: Path) -> None:
    answers = fake_study.answer("task", 1.0, 5)
    log = tmp_path / "fidelity" / "merged_then_quantized" / "task.jsonl"
    records.write_items(log, answers)
    named = {"merged_then_quantized/task": identity.hash_file(log), "merged_original/task": "0"}
    told = records.Record(stage="fidelity", treatment={}, result={"items": named}, observation={})
    run = Run(records={"fidelity": told}, items={})
    assert read_served(tmp_path, run) == {("merged_then_quantized", "task"): answers}
    records.write_items(log, answers[:4])
    with pytest.raises(UserError, match="is not the item log"):
        read_served(tmp_path, run)
    assert read_served(tmp_path, Run(records={}, items={})) == {}


def test_a_machine_that_was_not_alone_is_told(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    busy = name_point("nf4", 2, 0)
    fake_study.change(folder / busy, "measure", "observation",
                      {"train_speed": {"cpu_seconds_per_second": 1.2}})  # fmt: skip
    assert f"something else to do while speed was timed ({busy})" in warnings_of(folder)


def test_one_seed_and_one_configuration_are_told(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(8,), precisions=("nf4",), seeds=(0,))
    told = warnings_of(folder)
    assert "One seed" in told
    assert "One configuration" in told


def test_a_sweep_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(2,), precisions=("fp32",), seeds=(0,))
    with pytest.raises(UserError, match=f"no such sweep; of sweeps there are: {folder.name}"):
        read(folder.with_name("other"))
    with pytest.raises(UserError, match="there are none yet"):
        read(tmp_path / "elsewhere" / "other")


def test_an_empty_sweep_and_one_without_a_finished_point_are_faults(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, seeds=(0,), statuses={
        name_point(p, r, 0): "failed" for p in ("fp32", "nf4") for r in (2, 8)
    })  # fmt: skip
    with pytest.raises(UserError, match=r"no point that is done(.*\n.*failed){4}"):
        read(folder)
    manifest = fake_sweep.read_manifest(folder)
    fake_sweep.write_manifest(folder, {**manifest, "points": []})
    with pytest.raises(UserError, match="has no points"):
        read(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match=r"sweep\.json does not exist.* there are none yet"):
        read(folder)
