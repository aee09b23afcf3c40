"""Artifacts and run-cache through a DVC remote: one machine computes, another restores."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from toy_project import SWEEP, Toy

from bitrank.locks import hash_path

DVC = [sys.executable, "-m", "dvc"]
SWEPT = [*SWEEP, "adapter.rank=2,4"]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Toy]:
    """A project that has run, swept and pushed; a fresh clone of it that has pulled."""
    first = Toy(tmp_path_factory.mktemp("first"))
    remote = tmp_path_factory.mktemp("remote")
    run(first, *DVC, "remote", "add", "--default", "shared", str(remote))
    run(first, sys.executable, "-m", "bitrank.cli", "params", "experiment=smoke")
    run(first, *DVC, "repro", "report")
    first.commit()  # dvc.lock and params.yaml among the files
    run(first, *SWEPT)
    run(first, *DVC, "push", "--run-cache")
    second = Toy.cloned(first, tmp_path_factory.mktemp("clone") / "project")
    run(second, *DVC, "pull", "--run-cache")
    return first, second


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


def test_what_dvc_pushes_is_not_all_that_the_run_cache_names(pushed: tuple[Toy, Toy]) -> None:
    """Artifacts of sweeps stay behind, and the records, which git keeps: hence the copy below."""
    first, second = pushed
    kept, there = objects(first.folder / ".dvc/cache"), objects(remote_of(second))
    assert there < kept
    record = hash_path(first.folder / "data/results/train.json")
    assert record is not None
    name = f"files/md5/{record[:2]}/{record[2:]}"
    assert name in kept
    assert name not in there


def test_with_the_whole_cache_sweeps_are_restored_and_gc_spares_the_remote(
    pushed: tuple[Toy, Toy],
) -> None:
    first, second = pushed
    remote = remote_of(second)
    copy(first.folder / ".dvc/cache", remote)  # whose layout is the same
    copy(remote, second.folder / ".dvc/cache")
    (second.folder / "dvc.lock").unlink()
    shutil.rmtree(second.folder / "data" / "adapter")
    run(second, *DVC, "repro", "report")
    assert "2 of 2 points are done" in run(second, *SWEPT)
    assert second.ran() == []
    shutil.rmtree(second.folder / "data" / "sweeps")
    before = objects(remote)
    run(second, sys.executable, "-m", "bitrank.cli", "gc", "--delete", "--own-cache")
    assert objects(second.folder / ".dvc/cache") < before
    assert objects(remote) == before
    copy(remote, second.folder / ".dvc/cache")
    assert "2 of 2 points are done" in run(second, *SWEPT)
    assert second.ran() == []


def remote_of(toy: Toy) -> Path:
    return Path(run(toy, *DVC, "remote", "list").split()[1])


def objects(cache: Path) -> set[str]:
    return {f.relative_to(cache).as_posix() for f in cache.glob("files/md5/*/*")}


def copy(source: Path, target: Path) -> None:
    """As `rsync -a --ignore-existing` does."""
    for file in source.rglob("*"):
        there = target / file.relative_to(source)
        if file.is_file() and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, there)
