"""Each command that the page about adapters names runs, on a project that has what it names."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import fake_adapters
import fake_sweep
import pytest
from fake_project import ROOT
from typer.testing import CliRunner

from bitrank import cli, paths
from bitrank.store import DATABASE

PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
POINT = "nf4-r8-s0-abc123"


class Hub:
    """Takes what is pushed."""

    def create_repo(self, repo_id: str, **_: object) -> str:
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, folder_path: str, **_: object) -> None:
        assert (Path(folder_path) / "README.md").is_file()


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run and a point of a sweep with the same adapter; the point's is in the cache."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    fake_adapters.record(monkeypatch, fake_adapters.make_adapter(paths.ADAPTER))
    sweep = fake_sweep.write_sweep(tmp_path, ranks=(8,), precisions=("nf4",), seeds=(0,))
    for file in paths.RESULTS.glob("*.json"):
        shutil.copy(file, sweep / POINT / "results" / file.name)
    fake_adapters.put_into_cache(paths.ADAPTER, sweep / POINT / "dvc.lock")
    paths.MLFLOW.mkdir(parents=True)
    shutil.copy(empty_database, paths.MLFLOW / DATABASE)


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE, re.M | re.S)
    return [line.partition("#")[0] for line in "".join(blocks).splitlines()]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_page_runs(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "bitrank"
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 0, answer.exception
    assert answer.stdout.strip()


def test_the_page_names_every_command_and_every_place() -> None:
    told = " ".join(commands())
    for command in ("adapters --json", "adapters push", "adapters register", "--public", "hf://"):
        assert command in told, command
    for where in ("workspace", "DVC cache", "not here"):
        assert f"| {where} |" in PAGE
