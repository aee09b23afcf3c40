"""What DVC's cache holds that nothing with a name refers to: the command `bitrank gc`.

Names have the workspace, every branch and tag, every saved experiment, and every point of a sweep
in `data/sweeps`. `dvc gc` does not know the sweeps, and drops the records of every stage from the
cache, since git keeps them: nothing could then be restored without running it again. So what is
needed is read from the locks of all of them, records included.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.scm import NoSCM
from voluptuous import Invalid

from bitrank import paths
from bitrank.devices import try_lock
from bitrank.errors import UserError

TMP = Path(".dvc") / "tmp"
SWEEP = re.compile(r"bitrank[.-]sweep")
OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
DAY = 24 * 3600.0
BROKEN = "nothing was deleted: repair it, or remove it if it is not needed"


@dataclass(frozen=True)
class Share:
    """Files of one kind; sizes in bytes."""

    kind: str
    files: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Garbage:
    kept: list[Share]
    """Objects of the cache by who needs them; each counts once, for the first who does."""
    free: dict[str, list[Path]]
    """Files and folders that nobody needs, by kind, in the order in which they may go."""

    def shares(self) -> list[Share]:
        """What would be freed. A file with another name elsewhere frees nothing by going here."""
        return [Share(kind, *_measure(found)) for kind, found in self.free.items()]


@contextmanager
def alone() -> Iterator[None]:
    """Keep DVC and all known sweep points out of this project meanwhile.

    Raises:
        UserError: one of them is at work; what it has made may not have a name yet.
    """
    with ExitStack() as held:
        for lock in sorted(paths.WORKSPACES.glob("*/*.lock")):
            descriptor = os.open(lock, os.O_RDWR)
            held.callback(os.close, descriptor)
            if not try_lock(descriptor):
                raise UserError(f"sweep {lock.parent.name} is running ({lock.stem}): let it end")
        try:
            held.enter_context(_open_repo().lock)
        except LockError:
            raise UserError("a DVC command is at work in this project: let it end") from None
        for pid, what in _workers():
            raise UserError(f"process {pid} is at work in this project ({what}): let it end")
        yield


def _workers() -> Iterator[tuple[int, str]]:
    """Processes that run a stage or a sweep here, or anything in a temporary copy of it."""
    file = TMP / "rwlock"  # DVC gives its lock back while a stage runs, and writes its paths here
    used = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    users = [user for readers in used.get("read", {}).values() for user in readers]
    users += used.get("write", {}).values()
    pids = {user["pid"] for user in users}
    here, copies = Path.cwd(), TMP.resolve()
    for process in psutil.process_iter():
        try:
            command, folder = " ".join(process.cmdline()), Path(process.cwd())
            stage = process.pid in pids and "dvc" in command  # else of one that was killed
            sweep = folder == here and SWEEP.search(command)  # it may be between two points
            if stage or sweep or copies in folder.parents:
                yield process.pid, command
        except psutil.Error:  # ended, or another user's
            continue


def find(checkpoint_days: float, own_cache: bool = False) -> Garbage:
    """Look through the cache and what stale runs left behind; change nothing.

    `checkpoint_days`: how old the checkpoints of a training must be to be garbage. `own_cache`: no
    other project uses a cache that lies outside of this one.

    Raises:
        UserError: no DVC project, a lock that cannot be read, or a cache that may be shared.
    """
    repo = _open_repo()
    cache = Path(repo.cache.local.path)
    if not own_cache and Path(repo.root_dir) not in cache.parents:
        raise UserError(
            f"the cache {cache} is outside of this project: others may need what is in it. If it "
            "is this project's alone, say --own-cache"
        )
    # First: what comes into the cache from now on is not looked at.
    objects = {
        file.parent.name + file.name: file
        for file in cache.glob("??/*")
        if OBJECT.fullmatch(file.parent.name + file.name)
    }
    needed: set[str] = set()
    kept = []
    for kind, roots in _roots(repo).items():
        new = (_with_members(roots(), objects) & set(objects)) - needed
        needed |= new
        kept.append(Share(kind, len(new), sum(objects[oid].stat().st_size for oid in new)))
    unneeded = sorted(set(objects) - needed, key=lambda oid: (not oid.endswith(".dir"), oid))
    free = {
        "run-cache": [run for run in _runs(repo) if not _outs(run) <= needed],
        "objects": [objects[oid] for oid in unneeded],
        "workspaces": sorted(_workspaces()),
        "checkpoints": sorted(_checkpoints(time.time() - checkpoint_days * DAY)),
    }
    return Garbage(kept=kept, free=free)


def delete(garbage: Garbage) -> None:
    """Remove what is free; to be called while `alone`, with what was found in that time."""
    for path in (path for found in garbage.free.values() for path in found):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for run in garbage.free["run-cache"]:
        if not any(run.parent.iterdir()):
            run.parent.rmdir()  # DVC stumbles over an empty one


def _open_repo() -> Any:
    try:
        repo = Repo()
    except DvcException as error:
        raise UserError(str(error)) from None
    if Path(repo.root_dir) != Path.cwd():
        raise UserError(f"run this in the project's root, {repo.root_dir}")
    return repo


def _roots(repo: Any) -> dict[str, Callable[[], set[str]]]:
    """By kind, in order, what collects the hashes that its locks name."""
    committed = {}
    if not isinstance(repo.scm, NoSCM) and not repo.scm.no_commits:
        committed = {
            "branches and tags": lambda: _of_revisions(
                repo, revs=["HEAD"], all_branches=True, all_tags=True
            ),
            "experiments": lambda: _of_revisions(repo, all_experiments=True),
        }
    return {"workspace": lambda: _of_revisions(repo), **committed, "sweeps": _of_sweeps}


def _of_revisions(repo: Any, **which: Any) -> set[str]:
    """Hashes of all outs at these revisions of git; none named: in the workspace."""
    found: set[str] = set()
    for revision in repo.brancher(workspace=not which, **which):
        try:
            found |= {out.hash_info.value for out in repo.index.outs if out.hash_info}
        except DvcException as error:
            raise UserError(f"{revision or 'workspace'}: {error}; {BROKEN}") from None
    return found


def _of_sweeps() -> set[str]:
    found: set[str] = set()
    for lock in sorted(paths.SWEEPS.glob("*/*/dvc.lock")):
        try:
            stages = COMPILED_LOCKFILE_SCHEMA(_load(lock))["stages"].values()
        except (yaml.YAMLError, UnicodeDecodeError, Invalid, KeyError):
            raise UserError(f"{lock} is no lock of DVC's; {BROKEN}") from None
        entries = (e for stage in stages for kind in ("deps", "outs") for e in stage.get(kind, []))
        found |= {entry["md5"] for entry in entries if "md5" in entry}
    return found


def _load(file: Path) -> Any:
    return yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _with_members(hashes: Iterable[str], objects: Mapping[str, Path]) -> set[str]:
    """These hashes and, of those that are folders in the cache, all files in them."""
    found = set(hashes)
    for oid in [oid for oid in found if oid.endswith(".dir") and oid in objects]:
        try:
            members = json.loads(objects[oid].read_text(encoding="utf-8"))
            found |= {member["md5"] for member in members}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{objects[oid]} is damaged; {BROKEN}") from None
    return found


def _runs(repo: Any) -> list[Path]:
    """What DVC noted of each run of a stage, to restore its outs instead of running it again."""
    return sorted(file for file in Path(repo.stage_cache.cache_dir).glob("??/*/*"))


def _outs(run: Path) -> set[str]:
    try:
        return {str(out["md5"]) for out in _load(run)["outs"]}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return {"damaged"}  # DVC removes such a file when it meets it


def _workspaces() -> Iterator[Path]:
    """Temporary copies of the project, of sweep points and of DVC's own queue; nobody is in one."""
    for pattern in ("sweeps/*/*", "exps/tmp*", "exps/standalone/tmp*"):
        yield from (path for path in TMP.glob(pattern) if path.is_dir())


def _checkpoints(before: float) -> Iterator[Path]:
    for folder in paths.CHECKPOINTS.glob("*"):
        if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < before:
            yield folder


def _measure(found: Iterable[Path]) -> tuple[int, int]:
    files = [
        status
        for path in found
        for file in (path.rglob("*") if path.is_dir() else [path])
        if not file.is_symlink() and file.is_file() and (status := file.stat())
    ]
    return len(files), sum(status.st_size for status in files if status.st_nlink == 1)
