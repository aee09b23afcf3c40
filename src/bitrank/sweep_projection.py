"""What the MLflow runs of a sweep show: one parent, and below it a run for every point that ended.

A point's run shows what a single run does, and beside it the sweep, the point's key, and how it
ended. A point that failed has its configuration, the reason, and what it had measured until then;
one that was interrupted, runs, or was not begun has no run. The parent counts the points and holds
the manifest, `results.csv`, a line a point, and the sweep's report if there is one. It has no
parameters: beside those of its points, "2, 8" for a rank would turn MLflow's axes of numbers into
axes of texts.

Input is `data/sweeps/<sweep>` as the sweep leaves it: `sweep.json`, and a folder a point. Whether a
point's run must be written anew is known from the hash of its files, so that a sweep of a hundred
points is found to be published without reading them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bitrank import paths, privacy, projection
from bitrank.errors import UserError
from bitrank.identity import hash_file, hash_files, hash_json
from bitrank.privacy import hide_home
from bitrank.projection import Projection
from bitrank.runs import STAGES, Run, read_run
from bitrank.store import POINT, SWEEP, Wanted

MANIFEST = "sweep.json"
REPORT = "report"
"""Folder of the sweep's own report, beside those of its points."""
SCHEMA_VERSION = 1
"""Of the manifest."""
UNREADABLE = "is not a sweep's manifest: remove it, and the sweep's command makes it anew"
COSTS = ["memory/train_peak_bytes", "speed/train_tokens_per_second"]
QUALITY = ["nll/adapter", "acc/adapter"]
CONTROLS = ["acc/merged", "acc/quantized", "acc/original", "acc/control", "model/size_bytes"]
"""The metrics that tell what a rank and a precision cost and give."""
FAILURES = ("failed", "out of memory")
ENDED = ("done", *FAILURES)
_PROJECTING = [Path(__file__), Path(projection.__file__), Path(privacy.__file__)]


@dataclass(frozen=True, kw_only=True)
class Point:
    key: str
    status: str
    reason: str | None
    seconds: float | None
    values: Mapping[str, str]
    """Of what is varied, by its name in an override."""
    folder: Path
    entry: Mapping[str, Any]
    """All that the manifest says of it."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    id: str
    folder: Path
    manifest: Mapping[str, Any]
    points: Sequence[Point]

    @property
    def axes(self) -> Mapping[str, Sequence[str]]:
        axes: Mapping[str, Sequence[str]] = self.manifest["axes"]
        return axes

    def find(self, key: str) -> Point:
        """Raises UserError: the sweep has no such point."""
        for point in self.points:
            if point.key == key:
                return point
        raise UserError(f"the sweep {self.id} has no point {key}")


def read_sweep(folder: Path) -> Sweep:
    """Raises UserError: no manifest, or one that cannot be read or is of a newer bitrank."""
    file, manifest = folder / MANIFEST, read_manifest(folder)
    try:
        name, axes = manifest["sweep"], manifest["axes"]
        points = [_read_point(entry, folder) for entry in manifest["points"]]
        unfit = [n for n in (name, *(p.key for p in points)) if not re.fullmatch(r"[\w.=+-]+", n)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} {UNREADABLE}") from None
    if unfit or not isinstance(axes, Mapping):
        raise UserError(f"{file} is damaged at {unfit or 'axes'}: the sweep's command makes it")
    return Sweep(id=name, folder=folder, manifest=manifest, points=points)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UserError: as `read_sweep`; what the manifest says of its points is not looked at."""
    file = folder / MANIFEST
    if not file.is_file():
        there = sorted(found.parent.name for found in folder.parent.glob(f"*/{MANIFEST}"))
        here = f"there are: {', '.join(there)}" if there else "there are none yet"
        told = f"{file} does not exist: there is no such sweep; of sweeps {here}"
        if (paths.PAPERS / folder.name / MANIFEST).is_file():
            told += f". It is kept in {paths.PAPERS}: `bitrank paper {folder.name} --restore`"
        raise UserError(told)
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} {UNREADABLE}") from None
    if version > SCHEMA_VERSION:
        raise UserError(f"{file} has schema version {version}, newer than this bitrank: update it")
    return manifest


def _read_point(entry: Mapping[str, Any], folder: Path) -> Point:
    values = dict(override.lstrip("+").split("=", 1) for override in entry["overrides"])
    found = {name: entry[name] for name in ("key", "status", "reason", "seconds")}
    return Point(**found, values=values, folder=folder / entry["key"], entry=entry)


def want_parent(sweep: Sweep) -> Wanted:
    shown = [
        _hash_code(),
        sweep.manifest,
        [_hash_point(point) for point in sweep.points],
        hash_files(sweep.folder / REPORT),
    ]
    left = [point for point in sweep.points if point.status not in ENDED]
    failed = [point for point in sweep.points if point.status in FAILURES]
    return Wanted(
        key=sweep.id,
        content=hash_json(shown),
        status="RUNNING" if left else "FAILED" if failed else "FINISHED",
        lasting=True,
        project=cache(lambda: _project_parent(sweep)),
    )


def want_points(sweep: Sweep) -> list[Wanted]:
    """A run for each point that ended."""
    return [want_point(sweep, point) for point in sweep.points if point.status in ENDED]


def want_point(sweep: Sweep, point: Point) -> Wanted:
    status: Literal["FINISHED", "FAILED"] = "FINISHED" if point.status == "done" else "FAILED"
    shown = [_hash_code(), sweep.id, sweep.manifest.get("name"), point.entry, _hash_point(point)]
    return Wanted(
        key=f"{sweep.id}/{point.key}",
        content=hash_json(shown),
        status=status,
        project=cache(lambda: _project_point(sweep, point)),
    )


def find_params(sweep: Sweep) -> list[str]:
    """The parameters that the axes set: `precision` chooses what `precision.name` tells.

    Raises:
        UserError: no point's `params.yaml` can be read.
    """
    flat = projection.flatten(projection.read_yaml(sweep.points[0].folder / "params.yaml"))
    named = [(axis.replace("/", "."), f"{axis.replace('/', '.')}.name") for axis in sweep.axes]
    return [name for names in named for name in names if name in flat]


def _hash_code() -> str:
    """So that a run that an older bitrank wrote, in other words, gives way."""
    return hash_json([hash_file(file) for file in _PROJECTING])


def _hash_point(point: Point) -> str:
    folder = point.folder
    files = [hash_file(f) for f in (folder / "params.yaml", folder / "dvc.lock") if f.is_file()]
    return hash_json([files, hash_files(folder / "results"), hash_files(folder / REPORT)])


def _read_point_run(point: Point) -> Run:
    """Of a point that failed there may be no record."""
    results = point.folder / "results"
    if point.status != "done" and not any(paths.record(s, results).is_file() for s in STAGES):
        return Run(records={}, items={})
    return read_run(results, {})


def _project_point(sweep: Sweep, point: Point) -> Projection:
    folder = point.folder
    # A lock that was not finished may tell of other parameters still.
    lock = folder / ("dvc.lock" if point.status == "done" else "no-lock")
    run = _read_point_run(point)
    shown = projection.project(
        run, folder / "results", folder / "params.yaml", lock, folder / REPORT
    )
    tags = {**_tags(sweep), POINT: point.key, "sweep.status": point.status}
    if point.reason is not None:
        tags["sweep.reason"] = point.reason
    metrics = {} if point.seconds is None else {"seconds/point": point.seconds}
    return replace(
        shown,
        key=f"{sweep.id}/{point.key}",
        name=point.key,
        tags={**shown.tags, **_legal(tags)},
        metrics={**shown.metrics, **metrics},
        seconds=point.seconds,
    )


def _project_parent(sweep: Sweep) -> Projection:
    states = [point.status for point in sweep.points]
    counts = {
        "total": len(states),
        "done": states.count("done"),
        "failed": sum(state in FAILURES for state in states),
        "left": sum(state not in ENDED for state in states),
    }
    manifest = sweep.manifest
    tags = {
        **_tags(sweep),
        "code.sha256": manifest.get("code_hash"),
        "git.commit": manifest.get("git_commit"),
        "git.dirty": json.dumps(manifest.get("git_dirty")),
        "sweep.overrides": " ".join(manifest.get("overrides", [])) or None,
        **{f"axis.{name}": ", ".join(values) for name, values in sweep.axes.items()},
    }
    body = hide_home(json.dumps(manifest, indent=2) + "\n")
    return Projection(
        key=sweep.id,
        name=sweep.id,
        params={},
        metrics={f"points/{name}": float(count) for name, count in counts.items()},
        curves={},
        tags=_legal({name: text for name, text in tags.items() if text not in (None, "null")}),
        artifacts={
            "sweep.json": body.encode(),
            "results.csv": _write_table(sweep).encode(),
            **dict(privacy.report_files(sweep.folder / REPORT)),
        },
    )


def _tags(sweep: Sweep) -> dict[str, Any]:
    return {SWEEP: sweep.id, "sweep.name": sweep.manifest.get("name") or sweep.id}


def _legal(tags: Mapping[str, str]) -> dict[str, str]:
    """Names that MLflow takes, and values that are not longer than it keeps, or private."""
    return {
        re.sub(r"[^\w./ -]", "_", name): projection.shorten(hide_home(text))
        for name, text in tags.items()
    }


def _write_table(sweep: Sweep) -> str:
    """CSV, a line a point; what is not known is empty."""
    metrics = [*COSTS, *QUALITY, *CONTROLS]
    columns = ["key", *sweep.axes, "status", "reason", "seconds", *metrics]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(_rows(sweep))
    return hide_home(text.getvalue())


def _rows(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for point in sweep.points:
        try:
            run = _read_point_run(point) if point.status in ENDED else Run(records={}, items={})
        except UserError:  # which its own run tells
            run = Run(records={}, items={})
        yield {**dict(projection.metrics_of(run)), **point.values, **point.entry}
