"""A version in MLflow's registry: once, with its base's identity and the files of a push."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fake_adapters
import fake_run
import fake_sweep
import pytest
from typer.testing import CliRunner, Result

from bitrank import cli, collection, paths, records, registry
from bitrank.errors import UserError
from bitrank.store import DATABASE, own_store

NAME = "SmolLM2-135M-Instruct-icd10-chapters"


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's run, whose weights are in the workspace, and a store without an experiment."""
    home = tmp_path / "jdoe"
    monkeypatch.setenv("HOME", str(home))
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (home / "project" / paths.MLFLOW).mkdir(parents=True)
    monkeypatch.chdir(home / "project")
    fake_adapters.record(monkeypatch, fake_adapters.make_adapter(paths.ADAPTER))
    shutil.copy(empty_database, paths.MLFLOW / DATABASE)
    return Path.cwd()


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["adapters", "register", *arguments])


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=own_store().uri)


def versions(name: str = NAME) -> list[Any]:
    return list(client().search_model_versions(f"name = '{name}'"))


def test_a_version_names_its_base_and_belongs_to_its_run(project: Path) -> None:
    answer = ask("run")
    assert answer.exit_code == 0, answer.exception
    assert answer.stdout.strip() == f"published: {NAME} version 1 in data/mlflow/mlflow.db"
    (version,) = versions()
    score = records.read_record(paths.record("evaluate-adapter")).result["tasks"]["task"]
    told = {
        "adapter.hash": collection.find_adapter("run").adapter_hash,
        "base.name": "SmolLM2-135M-Instruct", "base.source.version": "0.1.2",
        "base.original_hash": fake_run.HASH["original"], "base.precision": "nf4",
        "base.hash": fake_run.HASH["quantized"], "data.hash": fake_run.HASH["data"],
        "adapter.rank": "[8]", "score.acc": str(score["acc"]),
        "score.acc_stderr": str(score["acc_stderr"]),
    }  # fmt: skip
    assert {key: version.tags.get(key) for key in told} == told
    run = client().get_run(version.run_id)
    assert run.data.params["precision.name"] == "nf4"
    assert run.info.lifecycle_stage == "active"
    assert not [text for text in version.tags.values() if "jdoe" in text]


def test_its_files_are_those_of_a_push(project: Path, tmp_path: Path) -> None:
    assert ask("run").exit_code == 0
    (version,) = versions()
    got = client().download_artifacts(version.run_id, registry.FOLDER, str(tmp_path))
    assert version.source.endswith(f"/{registry.FOLDER}")
    assert CliRunner().invoke(cli.app, ["adapters", "push", "run", "out"]).exit_code == 0
    pushed = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    assert {file.name: file.read_bytes() for file in Path(got).iterdir()} == pushed


def test_twice_is_once_and_what_the_records_say_anew_is_brought_up_to_date(project: Path) -> None:
    assert ask("run").exit_code == 0
    assert ask("run").stdout.startswith(f"unchanged: {NAME} version 1")
    file = paths.record("fetch")
    record = records.read_record(file)
    treatment = {**record.treatment, "license": "MIT"}
    records.write_record(records.Record(**{**vars(record), "treatment": treatment}), file)
    assert ask("run").stdout.startswith("published")
    (version,) = versions()
    assert (str(version.version), version.tags["base.license"]) == ("1", "MIT")


def test_another_adapter_is_another_version(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("run").exit_code == 0
    shutil.rmtree(paths.ADAPTER)
    fake_adapters.record(monkeypatch, fake_adapters.make_adapter(paths.ADAPTER))
    assert "version 2" in ask("run").stdout
    assert len({version.tags["adapter.hash"] for version in versions()}) == 2
    assert ask("run", "--name", "mine").exit_code == 0
    assert len(versions("mine")) == 1


def test_one_of_two_who_register_at_once_gives_way(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = collection.find_adapter("run")
    assert ask("run").exit_code == 0
    seen = registry._versions
    answers = iter([[]])
    monkeypatch.setattr(registry, "_versions", lambda *a: next(answers, None) or seen(*a))
    done = registry.register(adapter, "bitrank")
    assert (done.version, [str(version.version) for version in versions()]) == ("1", ["1"])


def test_a_point_of_a_sweep_is_registered_from_the_cache(project: Path) -> None:
    key = "nf4-r8-s0-abc123"
    folder = fake_sweep.write_sweep(project, ranks=(8,), precisions=("nf4",), seeds=(0,)) / key
    adapter_hash = collection.find_adapter("run").adapter_hash
    for file in paths.RESULTS.glob("*.json"):
        shutil.copy(file, folder / "results" / file.name)
    fake_adapters.put_into_cache(paths.ADAPTER, folder / "dvc.lock")
    shutil.rmtree(paths.ADAPTER)
    answer = ask(f"{fake_sweep.NAME}/{key}")
    assert answer.exit_code == 0, answer.exception
    (version,) = versions()
    assert version.tags["adapter.hash"] == adapter_hash
    assert client().get_run(version.run_id).data.tags["sweep.key"] == key


def test_nothing_is_made_of_what_is_not_here(project: Path) -> None:
    paths.ADAPTER.rename("elsewhere")
    assert isinstance(ask("run").exception, UserError)
    assert versions() == []
    error = ask("run", "--name", "a/b's").exception
    assert isinstance(error, UserError)
    assert "--name" in str(error)


def test_no_path_of_the_base_goes_to_a_server(project: Path) -> None:
    file = paths.record("fetch")
    record = records.read_record(file)
    source = {"kind": "local", "path": "/srv/customers/model"}
    records.write_record(
        records.Record(**{**vars(record), "treatment": {**record.treatment, "source": source}}),
        file,
    )
    assert ask("run").exit_code == 0
    (version,) = versions()
    assert version.tags["base.source.kind"] == "local"
    assert "/srv" not in json.dumps(version.tags)
