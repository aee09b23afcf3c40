"""The folder of a sweep over precision, rank and seed as its driver leaves it; all is invented.

The numbers behave as real ones do: 4 bits hold less, a higher rank learns more and holds more,
seeds differ a little.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fake_project import ROOT, make_records

from bitrank import paths, records
from bitrank.composition import compose_text

NAME = "rank-precision-seed-3fa91c"
REASON = "train: torch.OutOfMemoryError: tried to allocate 20.00 MiB"


def write_sweep(
    root: Path,
    name: str = NAME,
    ranks: Sequence[int] = (2, 8),
    precisions: Sequence[str] = ("fp32", "nf4"),
    seeds: Sequence[int] = (0, 1),
    statuses: Mapping[str, str] | None = None,
) -> Path:
    """Write `data/sweeps/<name>` below `root`; `statuses`: of the points that are not done."""
    folder = root / paths.SWEEPS / name
    points = []
    for precision, rank, seed in product_of(precisions, ranks, seeds):
        key = name_point(precision, rank, seed)
        status = (statuses or {}).get(key, "done")
        write_point(folder / key, precision, rank, seed, status)
        points.append({
            "key": key, "params_sha256": "5" * 64, "status": status,
            "overrides": [f"adapter.rank={rank}", f"precision={precision}", f"seed={seed}"],
            "reason": REASON if status in ("failed", "out of memory") else None,
            "seconds": 100.0 + rank if status == "done" else None,
            "lock_sha256": "7" * 64 if status == "done" else None,
        })  # fmt: skip
    axes = {"adapter.rank": ranks, "precision": precisions, "seed": seeds}
    write_manifest(folder, {
        "schema_version": 1, "sweep": name, "name": name.rpartition("-")[0], "code_hash": "9" * 64,
        "git_commit": "c" * 40, "git_dirty": False, "overrides": ["experiment=smoke"],
        "axes": {axis: list(map(str, values)) for axis, values in axes.items()}, "points": points,
    })  # fmt: skip
    return folder


def product_of(
    precisions: Sequence[str], ranks: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[str, int, int]]:
    return ((p, rank, seed) for rank in ranks for p in precisions for seed in seeds)


def name_point(precision: str, rank: int, seed: int) -> str:
    return f"{precision}-r{rank}-s{seed}-abc123"


def write_point(folder: Path, precision: str, rank: int, seed: int, status: str) -> None:
    """One that failed stopped after `prepare`; one that did not end has its configuration only."""
    text = compose_precision(precision).replace("\n  rank: 8\n", f"\n  rank: {rank}\n")
    for name in ("\nseed", "\n  init", "\n  order"):
        text = text.replace(f"{name}: 0\n", f"{name}: {seed}\n")
    records.write_text(folder / "params.yaml", text)
    if status in ("missing", "running", "interrupted"):
        return
    for stage, result, seen in invent(precision, rank, seed):
        if status == "done" or stage in ("fetch", "prepare"):
            observation = {**seen, "wall_seconds": 2.5}
            record = records.Record(
                stage=stage, treatment={}, result=result, observation=observation
            )
            records.write_record(record, paths.record(stage, folder / "results"))
    if status == "done":
        used = {"params.yaml": {"adapter.rank": rank, "seed": seed}}
        lock = {"schema": "2.0", "stages": {"train": {"cmd": "t", "params": used}}}
        records.write_text(folder / "dvc.lock", json.dumps(lock))
        records.write_text(folder / "report" / "report.md", "# Report\n")


@cache
def compose_precision(precision: str) -> str:
    return compose_text(["experiment=smoke", f"precision={precision}"], ROOT / "conf")


def invent(
    precision: str, rank: int, seed: int
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    noise = random.Random(f"{precision}{rank}{seed}")
    bits = {"fp32": 32, "int8": 8, "fp4": 4, "nf4": 4}[precision]
    acc = 0.72 - 0.25 / rank - 0.08 / bits + 0.01 * noise.gauss(0, 1)
    peak = 300_000_000 + 13_000_000 * bits + 2_500_000 * rank
    speed = 120 + bits - 0.6 * rank + noise.gauss(0, 1)
    return make_records(round(acc, 4), peak, round(speed, 2))


def read_manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    records.write_text(folder / "sweep.json", json.dumps(manifest, indent=2))


def environment() -> dict[str, str]:
    """For processes that publish: this one's, and this checkout's code."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def set_point(folder: Path, key: str, **changes: object) -> None:
    manifest = read_manifest(folder)
    (point,) = (p for p in manifest["points"] if p["key"] == key)
    point.update(changes)
    write_manifest(folder, manifest)
