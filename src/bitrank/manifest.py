"""What is kept of a sweep, below `data/sweeps/<sweep>`, and how each point stands.

    sweep.json                  the manifest: every point with its status, the code's hash
    <key>/params.yaml           the point's whole configuration, from the beginning on
    <key>/outcome.json          how its last run ended
    <key>/dvc.lock, results, items, report

Whoever runs a point holds its lock, and the operating system gives the lock back when that process
ends in whatever way: a point that says "running" under a free lock has died without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bitrank import devices, identity, paths, records
from bitrank.grid import Grid
from bitrank.sweep_projection import MANIFEST, SCHEMA_VERSION, read_manifest

Status = Literal["done", "failed", "out of memory", "interrupted", "running", "missing"]
DIED = "its process ended without a word: it was killed, or the machine went down"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a point stands."""

    status: Status
    reason: str | None = None
    """Of a failure, in one line."""
    seconds: float | None = None
    """Wall time of its last run, workspace and DVC included."""
    stages_ran: list[str] | None = None
    stages_restored: list[str] | None = None
    lock_sha256: str | None = None
    """Of `dvc.lock`, which names all inputs and outputs by hash."""


class SweepFolder:
    """The files of one sweep of the project in `root`; without it, the current directory."""

    def __init__(self, sweep: str, root: Path = Path()) -> None:
        self.sweep = sweep
        self.folder = root / paths.SWEEPS / sweep
        self.scratch = root / paths.WORKSPACES / sweep
        """Workspaces, logs and locks; nothing in it outlives the sweep for its own sake."""

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST

    def kept(self, key: str) -> Path:
        return self.folder / key

    def params(self, key: str) -> Path:
        return self.kept(key) / "params.yaml"

    @property
    def code(self) -> Path:
        """The code as it was when the sweep began: a project to copy."""
        return self.scratch / "code"

    def workspace(self, key: str) -> Path:
        return self.scratch / key

    def log(self, key: str) -> Path:
        return self.scratch / f"{key}.log"

    def declare(self, grid: Grid, name: str, code: Mapping[str, Any]) -> None:
        """Write the manifest with these points beside those that the sweep has already."""
        with self.changing():
            known = read_manifest(self.folder).get("points", []) if self.manifest.is_file() else []
            points = {point["key"]: point for point in known}
            for point in grid.points:
                points[point.key] = {
                    "key": point.key,
                    "overrides": list(point.overrides),
                    "params_sha256": identity.hash_text(point.text),
                }
                records.write_text(self.params(point.key), point.text)
            self._write({
                "schema_version": SCHEMA_VERSION,
                "sweep": self.sweep,
                "name": name,
                **code,
                "overrides": list(grid.fixed),
                "axes": grid.axes,
                "points": list(points.values()),
            })  # fmt: skip

    def refresh(self) -> None:
        """Bring the statuses in the manifest up to date."""
        with self.changing():
            self._write(read_manifest(self.folder))

    def commit(self) -> dict[str, Any]:
        """The code's commit, as `environment.describe_commit` told it."""
        body = read_manifest(self.folder)
        return {key: body[key] for key in ("git_commit", "git_dirty")}

    def find_lock(self, params: str) -> Path | None:
        """The `dvc.lock` of the point that is done whose configuration differs in fewest lines."""
        done = [p for p in read_manifest(self.folder)["points"] if p["status"] == "done"]
        wanted = set(params.splitlines())
        texts = {p["key"]: self.params(p["key"]).read_text(encoding="utf-8") for p in done}
        done.sort(key=lambda point: len(wanted ^ set(texts[point["key"]].splitlines())))
        for point in done:
            lock = self.kept(point["key"]) / "dvc.lock"
            if lock.is_file() and identity.hash_file(lock) == point["lock_sha256"]:
                return lock
        return None

    def outcomes(self, keys: Iterable[str]) -> dict[str, Outcome]:
        """How each of these points stands now."""
        return {key: self.outcome(key) for key in keys}

    def outcome(self, key: str) -> Outcome:
        file = self.kept(key) / "outcome.json"
        if not file.is_file():
            return Outcome(status="missing")
        found = Outcome(**json.loads(file.read_text(encoding="utf-8")))
        if found.status == "running" and not devices.is_held(self.scratch / f"{key}.lock"):
            return replace(found, status="failed", reason=DIED)
        return found

    def write_outcome(self, key: str, outcome: Outcome) -> None:
        body = json.dumps(asdict(outcome), indent=2, sort_keys=True) + "\n"
        records.write_text(self.kept(key) / "outcome.json", body)
        self.refresh()

    @contextmanager
    def holding(self, key: str) -> Iterator[None]:
        """Be the one process that runs this point; wait for another that does."""
        with self._locked(f"{key}.lock", f"another process runs {key}"):
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the one process that changes what the points share."""
        with self._locked("manifest.lock", f"another process writes {self.manifest}"):
            yield

    def _locked(self, name: str, why: str) -> AbstractContextManager[None]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return devices.holding(self.scratch / name, why)

    def _write(self, body: dict[str, Any]) -> None:
        points = [{**point, **asdict(self.outcome(point["key"]))} for point in body["points"]]
        text = json.dumps({**body, "points": points}, indent=2) + "\n"
        if not self.manifest.is_file() or self.manifest.read_text(encoding="utf-8") != text:
            records.write_text(self.manifest, text)
