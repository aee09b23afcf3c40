"""Publishing: one finished run whatever happened before, and a store never costs a result."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_project import EXPERIMENT, NUM_STEPS, ROOT, change_record, write_project

from bitrank import paths, tracking, writer
from bitrank.errors import UserError
from bitrank.store import DATABASE, KEY, find_store, hide_secrets, own_store
from bitrank.writer import TrackingError

PERSON = "jdoe"


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a person with a name and a home, in the current folder."""
    root = tmp_path / "a project"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, PERSON)
    (root / paths.MLFLOW).mkdir(parents=True)
    monkeypatch.chdir(root)
    write_project(root)
    shutil.copy(empty_database, root / paths.MLFLOW / DATABASE)
    return root


def publish() -> tracking.Published:
    return tracking.publish(experiment=EXPERIMENT)


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=own_store().uri)


def runs(view: int = 1) -> list[Any]:
    """All active runs, or with view 3 the deleted ones too."""
    store = client()
    experiment = store.get_experiment_by_name(EXPERIMENT)
    return (
        [] if experiment is None else list(store.search_runs([experiment.experiment_id], "", view))
    )


def test_a_run_holds_parameters_metrics_curves_tags_and_files(project: Path) -> None:
    done = publish()
    assert (done.outcome, done.name, done.store) == (
        "published", "nf4-r8-s0", "data/mlflow/mlflow.db")  # fmt: skip
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (done.run_id, "FINISHED")
    assert run.data.params["adapter.rank"] == "8"
    assert run.data.metrics["acc/adapter"] == 0.66
    history = client().get_metric_history(done.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, NUM_STEPS + 1))
    names = {file.path for file in client().list_artifacts(done.run_id)}
    assert names == {"params.yaml", "dvc.lock", "records", "report"}
    stored = project / paths.MLFLOW / "artifacts" / done.run_id / "artifacts"
    assert (stored / "params.yaml").read_bytes() == Path("params.yaml").read_bytes()


def test_nothing_names_the_person_or_this_machine(project: Path) -> None:
    publish()
    (run,) = runs()
    shown = f"{run.data.params} {run.data.tags} {run.info.user_id}"
    assert PERSON not in shown
    assert str(project) not in shown
    assert "mlflow.user" not in run.data.tags
    assert "mlflow.source.name" not in run.data.tags


def test_publishing_again_changes_nothing_and_does_not_start_mlflow(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish()

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("MLflow was started for nothing")

    monkeypatch.setattr(writer, "_open_client", refuse)
    assert publish() == tracking.Published(**{**vars(first), "outcome": "unchanged"})


def test_mlflow_itself_also_finds_the_published_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish()
    monkeypatch.setattr(tracking, "find_held", lambda *_: [])
    assert publish().run_id == first.run_id
    assert len(runs()) == 1


@pytest.mark.parametrize("step", ["log_batch", "log_artifacts", "set_terminated"])
def test_a_publication_cut_short_is_completed(
    project: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from mlflow import MlflowClient

    def break_off(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, break_off)
        with pytest.raises(TrackingError, match="no space left"):
            publish()
    assert [run.info.status for run in runs()] == ["RUNNING"]
    done = publish()
    assert [(run.info.run_id, run.info.status) for run in runs()] == [(done.run_id, "FINISHED")]
    assert publish().outcome == "unchanged"


def test_duplicates_are_cleared_away_and_the_oldest_stays(project: Path) -> None:
    first = publish()
    (run,) = runs()
    client().create_run(run.info.experiment_id, tags=run.data.tags)
    client().create_run(run.info.experiment_id, tags={KEY: run.data.tags[KEY]})
    assert len(runs()) == 3
    assert publish().run_id == first.run_id
    assert len(runs()) == 1


def test_a_run_gives_way_when_its_records_say_something_else(project: Path) -> None:
    publish()
    change_record("control", "result", {"acc": 0.61})
    assert publish().outcome == "published"
    assert [run.data.metrics["acc/control"] for run in runs()] == [0.61]
    assert len(runs(view=3)) == 2


def test_another_point_is_another_run(project: Path) -> None:
    publish()
    write_project(project, rank=16)
    publish()
    assert sorted(run.info.run_name for run in runs()) == ["nf4-r16-s0", "nf4-r8-s0"]


def test_a_deleted_run_is_published_again(project: Path) -> None:
    first = publish()
    client().delete_run(first.run_id)
    assert publish().run_id != first.run_id


def test_a_deleted_experiment_is_not_brought_back(project: Path) -> None:
    publish()
    client().delete_experiment(client().get_experiment_by_name(EXPERIMENT).experiment_id)
    with pytest.raises(TrackingError, match="was deleted"):
        publish()


def test_a_moved_project_does_not_write_where_it_was(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    moved = project.with_name("moved")
    shutil.copytree(project, moved)
    write_project(moved, rank=16)
    before = sorted(project.rglob("*"))
    monkeypatch.chdir(moved)
    with pytest.raises(TrackingError, match="another folder"):
        publish()
    assert sorted(project.rglob("*")) == before


def test_the_store_of_a_temporary_workspace_is_the_projects(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    write_project(workspace)
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(paths, "PROJECT", project)
    publish()
    assert len(runs()) == 1
    assert not (workspace / paths.MLFLOW).exists()


def test_a_damaged_store_is_a_warning_in_the_pipeline(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (project / paths.MLFLOW / DATABASE).write_bytes(b"no database" * 500)
    with pytest.raises(TrackingError, match="not a database"):
        publish()
    with caplog.at_level(logging.WARNING):
        assert tracking.publish_or_warn(experiment=EXPERIMENT) is None
    assert "later: bitrank publish" in caplog.text


def test_killed_while_the_database_is_made_the_next_one_makes_it(project: Path) -> None:
    own_store().database.unlink()
    draft = own_store().database.with_suffix(".draft")
    code = f"from bitrank import tracking; tracking.publish(experiment={EXPERIMENT!r})"
    killed = subprocess.Popen([sys.executable, "-c", code])
    while not draft.exists() or not draft.stat().st_size:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert publish().outcome == "published"
    assert len(runs()) == 1
    assert not draft.exists()


def test_a_slow_server_is_given_up(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="too slow"):
        tracking.publish(experiment=EXPERIMENT, patience=0.0)


@pytest.mark.parametrize("silent", [True, False])
def test_the_stage_succeeds_without_its_server(project: Path, silent: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()  # takes connections, never answers
        address = f"127.0.0.1:{server.getsockname()[1]}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "MLFLOW_TRACKING_URI": f"http://somebody:secret@{address}",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        }
        started = time.monotonic()
        stage = subprocess.run(
            [sys.executable, ROOT / "stages" / "record.py"],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert stage.returncode == 0, stage.stderr
    assert f"not published: http://{address} does not answer" in stage.stderr
    assert "bitrank publish" in stage.stderr
    assert "secret" not in stage.stderr + stage.stdout
    assert "Traceback" not in stage.stderr
    assert time.monotonic() - started < 60


def test_the_stage_names_a_fault_of_the_users_in_one_line(project: Path) -> None:
    shutil.rmtree(paths.RESULTS)
    stage = subprocess.run(
        [sys.executable, ROOT / "stages" / "record.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert stage.returncode == 1
    (line,) = stage.stderr.splitlines()
    assert line.startswith("error: data/results holds no record")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:p@ss@host:5000/x", "http://host:5000/x"),
        ("failed: https://token@host/api?key=1 (again)", "failed: https://host/api (again)"),
        ("postgresql+psycopg://u:p@db/mlflow?password=1", "postgresql+psycopg://db/mlflow"),
    ],
)
def test_secrets_in_addresses_are_hidden(uri: str, shown: str) -> None:
    assert hide_secrets(uri) == shown


def test_the_environment_names_the_store(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_store() == own_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    assert find_store().folder is None
    assert find_store().shown == "http://host"


def test_without_records_there_is_nothing_to_publish(project: Path) -> None:
    shutil.rmtree(paths.RESULTS)
    with pytest.raises(UserError, match="holds no record"):
        publish()
