"""`bitrank gc` frees what has no name, and nothing else; on a small pipeline of one stage."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.cli import main as dvc
from dvc.repo import Repo

from bitrank import garbage, identity, paths
from bitrank.errors import UserError

PIPELINE = """stages:
  make:
    cmd: mkdir -p data/made data/results && cp input data/made/file && (cat input; echo) > {record}
    deps: [input]
    outs: [data/made]
    plots:
      - {record}:
          cache: false
"""
RECORD = "data/results/make.json"
MADE = Path("data/made/file")
POINT = paths.SWEEPS / "ranks" / "r8"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project under git without a commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / ".gitignore").write_text("data/*\n!data/results\n.dvc/tmp\n.dvc/cache\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE.format(record=RECORD))
    git("init", "--quiet", "--initial-branch=main")
    git("config", "user.email", "a@example.org")
    git("config", "user.name", "a")
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def make(content: str) -> None:
    """Reproduce the pipeline for this input."""
    Path("input").write_text(content)
    assert dvc(["repro"]) == 0


def ran(content: str) -> bool:
    """Whether the stage had to run for this input, or was restored."""
    Path("input").write_text(content)
    told = subprocess.run([sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert (MADE.read_text(), Path(RECORD).read_text()) == (content, content + "\n")
    assert ("Running stage 'make'" in told.stdout) != ("is cached" in told.stdout)
    return "Running stage 'make'" in told.stdout


def keep_point() -> None:
    """What a sweep keeps of a point that ended as the workspace is now."""
    POINT.mkdir(parents=True)
    shutil.copy("dvc.lock", POINT)


def free(days: float = 14) -> garbage.Garbage:
    with garbage.alone():
        found = garbage.find(days)
        garbage.delete(found)
    return found


def refused(pattern: str) -> None:
    """gc ends with this error and has deleted nothing."""
    before = identity.hash_files(Path(".dvc/cache"))
    with pytest.raises(UserError, match=pattern):
        free()
    assert identity.hash_files(Path(".dvc/cache")) == before


def test_a_kept_point_is_restored_and_what_nothing_names_is_gone(project: Path) -> None:
    make("a sweep's")
    keep_point()
    make("nobody's")
    make("the workspace's")
    looked = garbage.find(14)
    shares = looked.shares()
    found = free()
    assert found == looked, "looking tells what deleting does"
    assert [(s.kind, s.files) for s in found.kept] == [("workspace", 3), ("sweeps", 3)]
    assert {s.kind: s.files for s in shares} == {
        "run-cache": 1, "objects": 3, "workspaces": 0, "checkpoints": 0,
    }  # fmt: skip
    assert dvc(["status"]) == 0, "the workspace lacks nothing"
    assert not ran("a sweep's")
    assert not ran("the workspace's")
    assert ran("nobody's")


def test_branches_tags_and_experiments_are_names(project: Path) -> None:
    make("committed")
    git("add", ".")
    git("commit", "--quiet", "--message=a")
    git("switch", "--quiet", "--create=other")
    make("a branch's")
    git("commit", "--quiet", "--all", "--message=b")
    git("switch", "--quiet", "main")
    make("an experiment's")
    assert dvc(["exp", "save"]) == 0
    make("nobody's")
    make("the workspace's")
    assert {s.kind: s.files for s in free().kept} == {
        "workspace": 3, "branches and tags": 6, "experiments": 3, "sweeps": 0,
    }  # fmt: skip
    for named in ("committed", "a branch's", "an experiment's"):
        assert not ran(named), named
    assert ran("nobody's")


def test_looking_changes_nothing(project: Path) -> None:
    make("a")
    make("b")
    before = identity.hash_files(Path(".dvc/cache"))
    assert garbage.find(0).free["objects"]
    assert identity.hash_files(Path(".dvc/cache")) == before


def test_nothing_is_deleted_while_a_point_runs(project: Path) -> None:
    make("a")
    make("b")
    lock = paths.WORKSPACES / "ranks" / "r8.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(r"sweep ranks is running \(r8\)")
    assert free().free["objects"]


def test_nothing_is_deleted_while_dvc_works(project: Path) -> None:
    make("a")
    make("b")
    with Repo().lock:
        refused("a DVC command is at work")
    workspace = paths.WORKSPACES / "ranks" / "r8"
    workspace.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], cwd=workspace) as working:
        refused(rf"process {working.pid} is at work in this project \(sleep 60\)")
        working.kill()
    assert free().free["workspaces"] == [workspace]


def test_nothing_is_deleted_while_a_sweep_is_between_two_points(project: Path) -> None:
    make("a")
    make("b")
    with subprocess.Popen(["sh", "-c", "sleep 60; : python -m bitrank.sweep -m seed=0,1"],
                          start_new_session=True) as driver:  # fmt: skip
        refused(rf"process {driver.pid} is at work in this project \(.*bitrank\.sweep -m seed=0,1")
        os.killpg(driver.pid, 9)
    assert free().free["objects"]


def test_nothing_is_deleted_while_a_stage_runs(project: Path) -> None:
    """DVC gives its own lock back for that time."""
    make("a")
    make("b")
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace("cmd: ", "cmd: touch started && sleep 60 && "))
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro"], start_new_session=True) as repro:
        while not Path("started").exists():
            time.sleep(0.1)
        refused(rf"process {repro.pid} is at work in this project \(.*dvc repro\)")
        os.killpg(repro.pid, 9)
    free()


@pytest.mark.parametrize("text", ["", "stages: 3", "schema: '2.0'\nstages: {make: {cmd: [", "\0"])
def test_a_broken_lock_of_a_sweep_is_named_and_nothing_deleted(project: Path, text: str) -> None:
    make("a")
    make("b")
    keep_point()
    (POINT / "dvc.lock").write_text(text)
    refused(rf"{POINT}/dvc\.lock is no lock of DVC's; nothing was deleted")


def test_a_broken_lock_of_the_workspace_is_named_and_nothing_deleted(project: Path) -> None:
    make("a")
    make("b")
    Path("dvc.lock").write_text("stages: 3")
    refused(r"workspace: .*dvc\.lock.*; nothing was deleted")


def test_a_damaged_folder_in_the_cache_is_named_and_nothing_deleted(project: Path) -> None:
    make("a")
    (folder,) = Path(".dvc/cache").rglob("*.dir")
    folder.chmod(0o644)
    folder.write_text("{")
    refused(re.escape(folder.name) + " is damaged; nothing was deleted")


def test_a_cache_outside_of_the_project_may_be_shared(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    assert dvc(["cache", "dir", "--local", str(cache)]) == 0
    make("a")
    make("b")
    with pytest.raises(UserError, match=r"outside of this project.*say --own-cache"):
        garbage.find(14)
    assert len(garbage.find(14, own_cache=True).free["objects"]) == 3


def test_stale_copies_and_old_checkpoints_go(project: Path) -> None:
    make("a")
    copies = [paths.WORKSPACES / "ranks" / "code", Path(".dvc/tmp/exps/tmp1")]
    for copy in copies:
        (copy / "data").mkdir(parents=True)
        (copy / "data" / "checkpoints").symlink_to(paths.CHECKPOINTS.resolve())
    log = paths.WORKSPACES / "ranks" / "r8.log"
    log.write_text("why it failed")
    for name, age in (("old", 20), ("young", 10)):
        file = paths.CHECKPOINTS / name / "checkpoint-3" / "sealed.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        for path in (file, file.parent, file.parent.parent):
            os.utime(path, (0, time.time() - age * garbage.DAY))
    free()
    assert not [copy for copy in copies if copy.exists()]
    assert log.exists()
    assert os.listdir(paths.CHECKPOINTS) == ["young"]
    free(days=0)
    assert os.listdir(paths.CHECKPOINTS) == []


def test_only_the_root_of_a_project_will_do(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (project / "deeper").mkdir()
    monkeypatch.chdir(project / "deeper")
    with pytest.raises(UserError, match="run this in the project's root"):
        garbage.find(14)
    monkeypatch.chdir(tmp_path_factory.mktemp("none"))
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        garbage.find(14)
