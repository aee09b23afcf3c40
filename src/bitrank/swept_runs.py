"""One run of a sweep: its records and item logs, and what decides whether it may be compared.

Which code ran is told by the hashes in `dvc.lock` and not by the commit: a result that was restored
may name an older commit and come from the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitrank import paths, records
from bitrank.errors import UserError
from bitrank.findings import describe_hardware
from bitrank.identity import hash_file
from bitrank.pairing import Candidate, make_candidate
from bitrank.projection import flatten, read_yaml
from bitrank.records import Item
from bitrank.runs import ANSWERING, Run, read_run
from bitrank.sweep_projection import Point

CODE = ("src/", "stages/", "constraints-numeric.txt")
"""What a dependency of a locked stage begins with, if it is code."""
PLACED = ("train", "measure", "evaluate-adapter")
"""Stages whose results depend on where they ran."""
BUSY = 0.9
"""Share of its threads' time that a measurement must have had, or it was not alone."""


@dataclass(frozen=True, kw_only=True)
class SweptRun:
    point: Point
    params: Mapping[str, str]
    """The flattened `params.yaml`."""
    run: Run
    hardware: str
    versions: Mapping[str, str]
    """Hashes of code and versions of packages, by name."""
    schemas: frozenset[int]
    """Schema versions of the records, as they were written."""

    @property
    def key(self) -> str:
        return self.point.key

    @cached_property
    def candidate(self) -> Candidate:
        """What must be equal for it to be compared: its configuration and its live treatment."""
        return make_candidate(self.key, self.run, self.params)

    @property
    def seed(self) -> tuple[str, str]:
        return self.params.get("seeds.init", "?"), self.params.get("seeds.order", "?")

    @property
    def is_disturbed(self) -> bool:
        """Whether the machine had something else to do while speed was timed on its CPU."""
        threads = self.run.find("measure", "treatment", "threads")
        had = self.run.find("measure", "observation", "train_speed", "cpu_seconds_per_second")
        on_cpu = self.run.find("measure", "treatment", "device") == "cpu"
        return bool(on_cpu and threads and had is not None and had < BUSY * threads)


def read_swept_run(point: Point) -> SweptRun:
    """Raises UserError: records, item logs or configuration that cannot be read."""
    results = point.folder / "results"
    logs = {subject: point.folder / "items" / subject for subject in ANSWERING}
    run = read_run(results, logs)
    run = replace(run, items={**run.items, **read_served(point.folder / "items", run)})
    lock = point.folder / "dvc.lock"
    return SweptRun(
        point=point,
        params=flatten(read_yaml(point.folder / "params.yaml")),
        run=run,
        hardware=_describe_place(run),
        versions={**_code_of(read_yaml(lock) if lock.is_file() else {}), **_packages_of(run)},
        schemas=frozenset(
            records.read_version(paths.record(stage, results)) for stage in run.records
        ),
    )


def read_served(items: Path, run: Run) -> dict[tuple[str, str], list[Item]]:
    """The item logs of each way to serve the adapter, as the record of `fidelity` names them.

    Raises:
        UserError: a log is another one than the record names.
    """
    found = {}
    for name, sha256 in (run.find("fidelity", "result", "items") or {}).items():
        log, (way, _, task) = items / "fidelity" / f"{name}.jsonl", name.partition("/")
        if log.is_file():
            if hash_file(log) != sha256:
                raise UserError(f"{log} is not the item log that its record names")
            found[way, task] = records.read_items(log)
    return found


def _describe_place(run: Run) -> str:
    places = {
        describe_hardware(run, stage)
        for stage in PLACED
        if run.find(stage, "observation", "environment", "hardware")
    }
    return "; ".join(sorted(places)) or "unknown hardware"


def _code_of(lock: Any) -> dict[str, str]:
    stages = lock.get("stages", {}).values()
    return {
        dep["path"]: str(dep.get("md5"))
        for stage in stages
        for dep in stage.get("deps", [])
        if dep["path"].startswith(CODE)
    }


def _packages_of(run: Run) -> dict[str, str]:
    return {
        f"{stage}: {name}": str(version)
        for stage in PLACED
        for name, version in (
            run.find(stage, "observation", "environment", "packages") or {}
        ).items()
    }


def is_unquantized(run: SweptRun) -> bool:
    """Whether the base that was trained on is the original itself; told by the live model."""
    layers = ("quantize", "treatment", "precision", "num_quantized_layers")
    return bool(run.run.find(*layers) == 0)


def validation_loss(run: Run) -> float | None:
    """Of the weights that were kept, in nats a supervised token."""
    points = run.find("train", "result", "validation") or []
    kept = run.find("train", "result", "kept_step")
    losses = {point["step"]: point["loss"] for point in points}
    found = losses.get(kept, points[-1]["loss"] if points else None)
    return None if found is None else float(found)
