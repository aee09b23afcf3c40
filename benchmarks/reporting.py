"""What the benchmark scripts share: runs that may be compared, a table, and a JSON record.

A ratio is only ever made of two runs whose `matched` facts are equal, so that no script can print a
speed-up between runs that differ in something else. No torch here: a driver stays thin.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank import records
from bitrank.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Run:
    """One process of one contestant."""

    contestant: str
    matched: Mapping[str, Any]
    """What must be equal wherever two runs are compared, read from live objects."""
    measured: Mapping[str, Any]


def ratio(first: Sequence[Run], second: Sequence[Run], of: str) -> float:
    """Median of `of` over the first runs, divided by that over the second.

    Raises:
        UserError: two of the runs differ in a matched fact; the message names the facts.
    """
    differing = differences([*first, *second])
    if differing:
        names = f"{first[0].contestant} and {second[0].contestant}"
        raise UserError(f"{names} cannot be compared, they differ in: {', '.join(differing)}")
    above, below = (statistics.median(run.measured[of] for run in runs) for runs in (first, second))
    return float(above / below)


def differences(runs: Sequence[Run]) -> list[str]:
    """The matched facts in which not all runs agree, or which some of them lack."""
    names = sorted({name for run in runs for name in run.matched})
    missing = object()
    return [
        name
        for name in names
        if any(run.matched.get(name, missing) != runs[0].matched.get(name, missing) for run in runs)
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest: a few repeats have no standard deviation worth the name."""
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "all": list(values),
    }


def show_spread(values: Sequence[float], digits: int = 1) -> str:
    """`median [lowest, highest]`, or the one value alone."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def add_results_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the record (benchmarks/results)"
    )


def write_result(
    folder: Path, name: str, body: Mapping[str, Any], described: Mapping[str, Any]
) -> str:
    """Write `<name>-<hardware>.json` and return where, seen from here.

    What an earlier run left there is replaced. `described` is `environment.describe()` of a process
    that computed, or of this one.
    """
    path = folder / f"{name}-{hardware_slug(described['hardware'])}.json"
    whole = {"benchmark": name, **body, "environment": described}
    records.write_text(path, json.dumps(whole, indent=2, sort_keys=True, allow_nan=False) + "\n")
    return os.path.relpath(path)


def hardware_slug(fingerprint: Mapping[str, Any]) -> str:
    """A name for files: kind and number of the GPUs, or of the CPU's cores."""
    gpus, cpu = fingerprint["gpus"], fingerprint["cpu"]
    kind = f"{len(gpus)}x {gpus[0]['name']}" if gpus else f"{cpu['cores']} cores {cpu['model']}"
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
