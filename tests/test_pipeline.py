"""The whole pipeline with `dvc repro`, on the tiny model, in a copy of the project of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitrank import identity, paths, records

ROOT = Path(__file__).parents[1]
PARTS = ("src", "stages", "conf", "dvc.yaml", "params.yaml", "constraints-numeric.txt")
RECORDS = (
    "fetch", "prepare", "benchmarks", "quantize", "control", "train", "measure", "merge",
    "fidelity", *(f"evaluate-{subject}" for subject in paths.SUBJECTS),
)  # fmt: skip


class Project:
    """A copy of the project without git, with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / part)
        rows = folder / "tests" / "fixtures"
        rows.mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "fixtures" / "colours.jsonl", rows)
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").write_text(
            (ROOT / ".dvc" / "config").read_text().replace("[core]", "[core]\n    no_scm = true")
        )

    def environment(self) -> dict[str, str]:
        scripts = Path(sys.executable).parent
        path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
        kept = {name: text for name, text in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        return {**kept, "PATH": path, "PYTHONPATH": "src"}

    def run(self, *command: str) -> str:
        """Standard output and error of a command in the project; fails the test if it fails."""
        answer = subprocess.run(command, cwd=self.folder, env=self.environment(),
                                capture_output=True, text=True)  # fmt: skip
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout + answer.stderr

    def kill_at(self, stage: str, after: float) -> None:
        """Start `dvc repro`; kill it and what it runs `after` seconds into a stage."""
        running = subprocess.Popen(["dvc", "repro"], cwd=self.folder, env=self.environment(),
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   start_new_session=True)  # fmt: skip
        assert running.stdout is not None
        for line in running.stdout:
            if f"Running stage '{stage}'" in line:
                break
        else:
            pytest.fail(f"{stage} did not run")
        time.sleep(after)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()

    def compose(self, *overrides: str) -> None:
        self.run("bitrank", "params", "experiment=smoke", *overrides)

    def repro(self, *targets: str) -> set[str]:
        """The stages whose command ran."""
        return set(
            re.findall(r"Running stage '(?:\S+:)?([\w@]+)'", self.run("dvc", "repro", *targets))
        )

    def result(self, name: str) -> Any:
        return records.read_record(self.folder / paths.record(name)).result


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("project"))
    made.compose()
    assert len(made.repro()) == 16
    return made


def test_every_stage_leaves_its_record(project: Project) -> None:
    for name in RECORDS:
        record = records.read_record(project.folder / paths.record(name))
        assert record.observation["wall_seconds"] > 0
        assert record.observation["environment"]["packages"]["torch"]


def test_the_identity_chain_holds(project: Project) -> None:
    hashes = {name: project.result(name) for name in ("fetch", "quantize", "train", "merge")}
    train = records.read_record(project.folder / paths.record("train"))
    evaluated = {
        subject: records.read_record(project.folder / paths.record(f"evaluate-{subject}"))
        for subject in paths.SUBJECTS
    }
    assert train.treatment["base_hash"] == hashes["quantize"]["base_hash"]
    assert train.treatment["data_hash"] == project.result("prepare")["data_hash"]
    assert evaluated["original"].treatment["base_hash"] == hashes["fetch"]["base_hash"]
    assert evaluated["adapter"].treatment["base_hash"] == hashes["quantize"]["base_hash"]
    assert evaluated["adapter"].treatment["adapter_hash"] == hashes["train"]["adapter_hash"]
    assert evaluated["merged"].treatment["merged_hash"] == hashes["merge"]["merged_hash"]


def test_report_and_audit_are_there(project: Project) -> None:
    for page in ("report/report.md", "report/report.html", "audit/label_audit.html"):
        assert (project.folder / "data" / page).stat().st_size > 1000


def test_no_artifact_names_this_machine(project: Project) -> None:
    names = [str(project.folder), str(Path.home())]
    texts = [
        file
        for file in (project.folder / "data").rglob("*")
        if file.suffix in {".json", ".jsonl", ".html", ".md", ".csv", ".svg"}
    ]
    assert len(texts) > 20
    for file in texts:
        assert not [name for name in names if name in file.read_text(errors="ignore")], file


def test_a_second_repro_does_nothing(project: Project) -> None:
    lock = (project.folder / "dvc.lock").read_bytes()
    assert project.repro() == {"hardware"}
    assert (project.folder / "dvc.lock").read_bytes() == lock


def test_another_precision_keeps_what_does_not_depend_on_it_and_back_restores(
    project: Project,
) -> None:
    adapter = project.result("train")["adapter_hash"]
    timed = (project.folder / paths.record("measure")).read_bytes()
    project.compose("precision=fp32")
    ran = project.repro()
    assert not ran & {"fetch", "prepare", "benchmarks", "control", "baseline@original"}
    assert {"quantize", "train", "measure", "merge", "evaluate@adapter", "report"} <= ran
    assert project.result("train")["adapter_hash"] != adapter
    project.compose()
    assert project.repro() <= {"hardware", "record"}, "the rest comes from the run-cache"
    assert project.result("train")["adapter_hash"] == adapter
    assert (project.folder / paths.record("measure")).read_bytes() == timed


BASELINES = {"baseline@original", "baseline@quantized"}
EVALUATIONS = {"baseline@original", "baseline@quantized", "evaluate@adapter", "evaluate@merged"}
SCORED = {"fidelity", *EVALUATIONS}
TUNED = {"train", "measure", "merge", *SCORED}
DEPENDS = {  # by hand: what an edit of a file must run again, and nothing else
    "src/bitrank/fetching.py": {"fetch"},
    "src/bitrank/sources/tiny.py": {"fetch"},
    "src/bitrank/sources/hub.py": set(),
    "src/bitrank/wheels.py": {"fetch", "prepare", "benchmarks"},
    "src/bitrank/preparation.py": {"prepare"},
    "src/bitrank/rows/jsonl.py": {"prepare"},
    "src/bitrank/rows/icd10.py": set(),
    "src/bitrank/conversations.py": {"prepare"},
    "src/bitrank/splitting.py": {"prepare"},
    "tests/fixtures/colours.jsonl": {"prepare"},
    "src/bitrank/benchmarks.py": {"benchmarks"},
    "src/bitrank/quantization.py": {"quantize"},
    "src/bitrank/controls.py": {"control"},
    "src/bitrank/trainer.py": {"train"},
    "src/bitrank/checkpoints.py": {"train"},
    "src/bitrank/arguments.py": {"train"},
    "src/bitrank/steps.py": {"train", "measure"},
    "src/bitrank/batches.py": {"train", "measure"},
    "src/bitrank/full_tuning.py": TUNED,
    "src/bitrank/method.py": TUNED,
    "src/bitrank/targets.py": TUNED,
    "src/bitrank/lora.py": TUNED - BASELINES,
    "src/bitrank/methods/lora.py": TUNED - BASELINES,
    "src/bitrank/methods/vera.py": set(),
    "src/bitrank/chain.py": {"quantize", *TUNED},
    "src/bitrank/treatment.py": TUNED - {"merge"},
    "src/bitrank/determinism.py": TUNED - {"merge"},
    "src/bitrank/pairing.py": set(),
    "src/bitrank/adapters.py": TUNED,
    "src/bitrank/weights.py": {"quantize", *TUNED},
    "src/bitrank/measurement.py": {"measure"},
    "src/bitrank/merging.py": {"measure", "merge"},
    "src/bitrank/distances.py": {"measure", "merge", "fidelity"},
    "src/bitrank/serving.py": {"fidelity"},
    "src/bitrank/codes.py": {"fidelity"},
    "src/bitrank/statistics.py": {"fidelity", "report"},
    **{f"src/bitrank/{reads}.py": SCORED
       for reads in ("harness", "padded_batches", "side_by_side")},
    "src/bitrank/tasks.py": {"control", *SCORED},
    "src/bitrank/figures.py": {"report"},
    "src/bitrank/report.py": {"report"},
    "src/bitrank/tracking.py": set(),
    "src/bitrank/cli.py": set(),
    "src/bitrank/progress.py": set(),
    "src/bitrank/stage.py": set(),
    **{f"src/bitrank/{declares}.py": set()
       for declares in ("errors", "schema", "pins", "adapter_config", "data_config", "tuning",
                        "config", "paths", "records", "artifacts")},
    "constraints-numeric.txt": {
        "fetch", "prepare", "benchmarks", "quantize", "control", *TUNED,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DEPENDS)
def test_an_edit_runs_again_what_it_can_change_and_nothing_else(
    name: str, project: Project
) -> None:
    file = project.folder / name
    text = file.read_text()
    edited = "\n" if file.suffix == ".jsonl" else "\n# edited\n"
    try:
        file.write_text(text + edited)
        changed = set(json.loads(project.run("dvc", "status", "--json")))
    finally:
        file.write_text(text)
    assert {stage for stage in changed if "hardware" not in stage} == DEPENDS[name]


SETTINGS = {  # by hand: the stages that a setting runs again by itself
    "data.num_test=20": {"prepare"},
    "data.max_sequence_tokens=100": {"prepare", "train", "measure"},
    "train.learning_rate=1e-3": {"train", "measure"},
    "evaluate.batch_size=8": SCORED,
    "fidelity.num_items=10": {"fidelity"},
}


@pytest.mark.parametrize("override", SETTINGS)
def test_a_setting_runs_again_what_it_can_change_and_nothing_else(
    override: str, project: Project
) -> None:
    project.compose(override)
    changed = set(json.loads(project.run("dvc", "status", "--json")))
    project.compose()
    assert {stage for stage in changed if "hardware" not in stage} == SETTINGS[override] | {
        "record"
    }


def test_prepared_rows_that_stay_the_same_are_not_trained_on_again(project: Project) -> None:
    project.compose("data.name=other")
    ran = project.repro()
    project.compose()
    assert ran == {"hardware", "prepare", "report", "record"}


def test_a_source_of_another_kind_is_watched_when_it_is_used() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert "src/bitrank/sources/${model.source.kind}.py" in text
    assert "src/bitrank/rows/${data.rows.kind}.py" in text


KILLED = {  # seconds after the start: while it imports, loads, computes
    "prepare": 0.5, "quantize": 2.5, "baseline@original": 4.5, "train": 5.5, "measure": 0.5,
    "merge": 2.5, "report": 0.3,
}  # fmt: skip


def test_killed_at_any_stage_the_next_repro_ends_with_the_same_bytes(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each of these stages is killed once, with DVC itself."""
    other = Project(tmp_path_factory.mktemp("killed"))
    other.compose()
    for stage, seconds in KILLED.items():
        other.kill_at(stage, after=seconds)
    ran = other.repro()
    assert "record" in ran
    assert not ran & {"fetch", "prepare", "quantize"}, "what was finished is kept"
    for name in RECORDS:
        assert other.result(name) == project.result(name), name
    for folder in ("adapter", "merged", "base/quantized", "prepared", "items/adapter"):
        assert identity.hash_files(other.folder / "data" / folder) == identity.hash_files(
            project.folder / "data" / folder
        )
    assert not list((other.folder / "data").rglob("*.partial"))


def test_another_clone_gives_the_same_bytes(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Project(tmp_path_factory.mktemp("other"))
    other.compose()
    other.repro("evaluate@adapter", "merge")
    for name in ("fetch", "prepare", "quantize", "train", "merge", "evaluate-adapter"):
        assert other.result(name) == project.result(name), name


def test_a_users_fault_is_one_line_and_no_traceback(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = Project(tmp_path_factory.mktemp("faulty"))
    made.compose()
    text = (made.folder / "params.yaml").read_text()
    (made.folder / "params.yaml").write_text(text.replace("rank: 8", "rank: 0"))
    answer = subprocess.run(
        [sys.executable, "stages/fetch.py"], cwd=made.folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )  # fmt: skip
    assert answer.returncode == 1
    assert "`adapter.rank` must be at least 1, got 0" in answer.stderr
    assert "Traceback" not in answer.stderr
