"""Artifacts and run-cache through a DVC remote: what one machine computed, another restores."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_project import Toy

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Toy]:
    """A project that has run, swept and pushed; a fresh clone of it that has pulled."""
    first = Toy(tmp_path_factory.mktemp("first"))
    remote = tmp_path_factory.mktemp("remote")
    run(first, *DVC, "remote", "add", "--default", "shared", str(remote))
    run(first, sys.executable, "-m", "bitrank.cli", "params", "experiment=smoke")
    run(first, *DVC, "repro", "report")
    first.commit()  # dvc.lock and params.yaml among the files
    run(first, *first_sweep())
    run(first, *DVC, "push", "--run-cache")
    folder = tmp_path_factory.mktemp("clone") / "project"
    subprocess.run(["git", "clone", "-q", str(first.folder), str(folder)], check=True)
    second = object.__new__(Toy)
    second.folder = folder
    run(second, *DVC, "pull", "--run-cache")
    return first, second


def first_sweep() -> list[str]:
    from toy_project import SWEEP

    return [*SWEEP, "adapter.rank=2,4"]


def run(toy: Toy, *command: str) -> str:
    answer = toy.run(*command)
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def test_a_fresh_clone_has_everything_and_runs_nothing(pushed: tuple[Toy, Toy]) -> None:
    first, second = pushed
    assert first.ran()
    run(second, *DVC, "repro", "report")
    assert second.ran() == []
    made = "data/adapter/hash"
    assert (second.folder / made).read_text() == (first.folder / made).read_text()


def test_the_sweep_of_the_other_machine_is_restored_too(pushed: tuple[Toy, Toy]) -> None:
    _, second = pushed
    printed = run(second, *first_sweep())
    assert "2 of 2 points are done" in printed
    assert second.ran() == []


def test_without_the_lock_the_run_cache_restores_all_the_same(pushed: tuple[Toy, Toy]) -> None:
    _, second = pushed
    (second.folder / "dvc.lock").unlink()
    shutil.rmtree(second.folder / "data" / "adapter")
    run(second, *DVC, "repro", "report")
    assert second.ran() == []


def test_what_gc_frees_here_the_remote_still_has(pushed: tuple[Toy, Toy]) -> None:
    first, second = pushed
    shutil.rmtree(second.folder / "data" / "sweeps")
    before = sum(1 for _ in remote_of(second).rglob("*"))
    printed = run(second, sys.executable, "-m", "bitrank.cli", "gc", "--delete", "--own-cache")
    assert "freed" in printed
    assert sum(1 for _ in remote_of(second).rglob("*")) == before
    run(second, *DVC, "pull", "--run-cache")
    run(second, *first_sweep())
    assert second.ran() == []
    assert first.folder != second.folder


def remote_of(toy: Toy) -> Path:
    return Path(run(toy, *DVC, "remote", "list").split()[1])
