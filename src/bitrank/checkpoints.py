"""Checkpoints of a training that may be killed at any moment.

DVC deletes a stage's outs before it runs, so they live outside of them, in a folder that is named
by everything the training depends on: another row, option, library or line of code is another
folder. A checkpoint counts when it is sealed: the seal is written last, and names each file with
its hash, so one that was cut short by a kill or a full disk is passed over. The one before it is
deleted only then.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from bitrank import devices, environment, identity, paths, processes, records

SEAL = "sealed.json"
PREFIX = "checkpoint-"
"""transformers' name of a checkpoint's folder, before the number of its step."""

SECONDS_BETWEEN_CHECKPOINTS = 60.0
MOST_TIME_IN_CHECKPOINTS = 0.05
"""Share of the training's time: a large checkpoint is written less often."""


class Checkpoints:
    """The checkpoints of one training.

    `depends_on` is all that decides its result, besides the code and the libraries.
    """

    def __init__(self, depends_on: Mapping[str, Any], parent: Path = paths.CHECKPOINTS) -> None:
        sources = Path(__file__).parent
        code = {
            file.relative_to(sources).as_posix(): identity.hash_file(file)
            for file in sources.rglob("*.py")
        }
        key = identity.hash_json([depends_on, code, environment.describe_packages()])
        self.folder = parent / key[:16]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep out another process that runs the same training, as a sweep and `dvc repro` may."""
        if not processes.is_first():  # of one training
            yield
            return
        with devices.taking_turns(f"train-{self.folder.name}", "another has the same training"):
            yield

    def seal(self, step: int, state: Mapping[str, Any]) -> None:
        """Declare the checkpoint of `step` whole, with our own `state`; delete the older ones."""
        folder = self.folder / f"{PREFIX}{step}"
        files = {p.name: identity.hash_file(p) for p in sorted(folder.iterdir())}
        records.write_text(
            folder / SEAL, records.canonical_json({"state": state, "files": files}) + "\n"
        )
        for other in self.folder.glob(f"{PREFIX}*"):
            if other != folder:
                shutil.rmtree(other)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and the state it was sealed with; the others are deleted."""
        for folder in sorted(self.folder.glob(f"{PREFIX}*"), key=_step, reverse=True):
            state = _read_state(folder)
            if state is not None:
                return folder, state
            shutil.rmtree(folder, ignore_errors=True)  # another process may have been faster
        return None

    def discard(self, step: int) -> None:
        """Delete what there is of a checkpoint that could not be written."""
        shutil.rmtree(self.folder / f"{PREFIX}{step}", ignore_errors=True)

    def remove(self) -> None:
        """Delete them all: the training has ended, and its adapter is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def _read_state(folder: Path) -> dict[str, Any] | None:
    """None: not sealed, or not as it was when it was sealed."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        found = {p.name: identity.hash_file(p) for p in folder.iterdir() if p.name != SEAL}
    except (OSError, json.JSONDecodeError):
        return None
    state: dict[str, Any] = seal["state"]
    return state if found == seal["files"] else None


class Clock:
    """The seconds of a training that may run in several pieces, and when to write a checkpoint."""

    def __init__(self) -> None:
        self.before = 0.0
        """Seconds of the earlier pieces, up to their last checkpoint."""
        self._start = self._last = perf_counter()
        self._stopped: float | None = None
        self._spent = 0.0

    def start(self) -> None:
        self._start = self._last = perf_counter()

    def stop(self) -> None:
        self._stopped = perf_counter()

    @property
    def seconds(self) -> float:
        now = perf_counter() if self._stopped is None else self._stopped
        return self.before + now - self._start

    def note_checkpoint(self, spent: float) -> None:
        self._last, self._spent = perf_counter(), spent

    def is_checkpoint_due(self) -> bool:
        wait = max(SECONDS_BETWEEN_CHECKPOINTS, self._spent / MOST_TIME_IN_CHECKPOINTS)
        return perf_counter() - self._last >= wait
