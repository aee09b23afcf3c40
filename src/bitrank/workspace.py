"""A folder in which one sweep point runs `dvc repro`: a small project of its own.

It has the code as it was when the sweep began, the point's `params.yaml`, and the main project's
cache, so that whatever any other point, `dvc repro` or `dvc exp run` computed is restored, and the
other way round. Downloads and checkpoints are the main project's folders, which outlive it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from bitrank import identity, paths, records
from bitrank.artifacts import whole_folder
from bitrank.errors import UserError

CODE = ("src", "stages", "dvc.yaml", ".dvcignore", "constraints-numeric.txt")
"""What a point runs: an edit to any of it begins a new sweep."""
SHARED = (paths.DOWNLOADS, paths.CHECKPOINTS)
LINKS = "hardlink,reflink,symlink"
"""How outs get into DVC's cache and out of it. Unless hard links are its first choice, DVC copies
what a stage made: half a gigabyte of merged model, in a folder that is about to go."""
REPRODUCTION = "bitrank.reproduction"
"""The module that a workspace runs, as its process is named."""
MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory: on a disk DVC's notes, a megabyte, cost most of a second of
waiting for it at each point."""
PATIENCE = 20.0
"""Seconds that an interrupted pipeline has to end by itself."""


def hash_code(root: Path = Path()) -> str:
    """One hash of the code that a point of the project in `root` would run, as it is now.

    Raises:
        UserError: a part of it is not here.
    """
    files = _code_files(root)
    return identity.hash_json([[str(file), identity.hash_file(root / file)] for file in files])


def _code_files(root: Path) -> list[Path]:
    """Relative to `root`; without what Python and pip leave among them."""
    missing = [name for name in CODE if not (root / name).exists()]
    if missing:
        raise UserError(f"{', '.join(missing)} not found: run this in the project's root")
    found = (f for name in CODE for f in (root / name, *(root / name).rglob("*")) if f.is_file())
    names = (file.relative_to(root) for file in found if file.suffix not in (".pyc", ".lock"))
    return sorted(name for name in names if not any(p.endswith(".egg-info") for p in name.parts))


def copy_code(target: Path, root: Path = Path(), cache: Path | None = None) -> None:
    """Make `target` a project with the code of `root`, if it is not there.

    `cache`: of DVC; without it, the cache of the project in the current directory.
    """
    if target.is_dir():
        return
    with whole_folder(target) as partial:
        for file in _code_files(root):
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, partial / file)
        _write_dvc_config(partial / ".dvc", root / ".dvc", cache)


def _write_dvc_config(target: Path, given: Path, cache: Path | None) -> None:
    """The project's own settings, and above them what makes the workspace a part of it."""
    from configobj import ConfigObj  # DVC's

    target.mkdir()
    if (given / "config").is_file():
        shutil.copy(given / "config", target)
    local = given / "config.local"
    own = ConfigObj(str(local)) if local.is_file() else ConfigObj()
    own.setdefault("cache", {})["dir"] = str(cache or _dvc("cache", "dir").stdout.strip())
    own["cache"].setdefault("type", LINKS)
    own.setdefault("core", {}).update({"no_scm": "true", "analytics": "false"})
    own.filename = str(target / "config.local")
    own.write()


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True
    )
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"`dvc {' '.join(arguments)}` failed: {reason}")
    return answer


class Workspace:
    """`folder` below the main project, which is the current directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        whole = folder.resolve()
        inside = MEMORY if os.access(MEMORY, os.W_OK) else whole / ".dvc"
        self._site = inside / f"bitrank-dvc-{identity.hash_text(str(whole))[:16]}"
        """What DVC notes of files, for as long as the workspace lives."""

    def make(
        self,
        code: Path,
        params: str,
        inputs: Iterable[Path],
        lock: Path | None = None,
        shared: Iterable[Path] = SHARED,
    ) -> None:
        """Begin anew: what an earlier process left here may be half of something.

        `inputs`: files and folders of the user's own that the configuration names; those that
        `code` has already are left alone. `lock`: the `dvc.lock` of another point, whose entries
        are taken where they hold. `shared`: folders that are the main project's.
        """
        self.remove()
        shutil.copytree(code, self.folder)
        records.write_text(self.folder / "params.yaml", params)
        if lock is not None:
            shutil.copyfile(lock, self.folder / "dvc.lock")
        for path in inputs:
            there = self.folder / path
            if not path.is_absolute() and not there.exists():  # else it is where it is
                _link(path, there)
        for folder in shared:
            folder.mkdir(parents=True, exist_ok=True)
            there = self.folder / folder
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(folder.resolve())

    def reproduce(self, targets: Iterable[str], log: Path, environment: dict[str, str]) -> int:
        """Run `dvc repro`; return its exit status. All that it prints goes to `log`.

        Raises:
            KeyboardInterrupt: after the pipeline was interrupted as well.
        """
        scripts = Path(sys.executable).parent
        # What DVC and Hydra tell their children is of the main project.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "HYDRA_"))}
        inherited["PATH"] = f"{scripts}{os.pathsep}{inherited.get('PATH', '')}"
        inherited["DVC_SITE_CACHE_DIR"] = str(self._site)
        # A commit that is run again may be older than the module that runs it.
        sources = [str(Path(__file__).resolve().parents[1]), inherited.get("PYTHONPATH", "")]
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, sources))
        with log.open("a", encoding="utf-8") as stream:
            running = subprocess.Popen(
                [sys.executable, "-m", REPRODUCTION, *targets],
                cwd=self.folder, env={**inherited, **environment}, stdin=subprocess.DEVNULL,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                return running.wait()
            except BaseException:
                _interrupt(running)
                self.end_processes()
                raise

    def end_processes(self) -> None:
        """Kill what still works here: a killed driver leaves its pipeline running."""
        here = str(self.folder.resolve())
        left = [process for process in psutil.process_iter() if _is_of(process, here)]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=PATIENCE)

    def remove(self) -> None:
        if self.folder.exists():
            self.end_processes()
            shutil.rmtree(self.folder)
        shutil.rmtree(self._site, ignore_errors=True)


def _interrupt(running: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C in a terminal would: a training then keeps its checkpoint."""
    try:
        os.killpg(running.pid, signal.SIGINT)
        running.wait(PATIENCE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def _is_of(process: psutil.Process, folder: str) -> bool:
    """Whether it is DVC or a stage in this folder, and not a shell that someone opened there."""
    try:
        return process.cwd() == folder and any(
            word in " ".join(process.cmdline()) for word in (REPRODUCTION, "stages/")
        )
    except psutil.Error:  # ended, or another user's
        return False


def _link(source: Path, target: Path) -> None:
    """Nothing is copied where links can be made: weights have gigabytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        return  # DVC names the missing path better than we could
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
