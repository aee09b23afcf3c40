"""Where the time of a run goes: each stage's imports, its work, and everything else.

    PYTHONPATH=src python benchmarks/startup.py                # imports, and the last run's records
    time dvc repro                                             # the seconds of a whole run ...
    PYTHONPATH=src python benchmarks/startup.py --total 640    # ... give its shares

Imports are timed in processes of their own, in turns, from their start until the stage would begin
its work. Work is what the records under `data/results` say. A record that has its own
`import_seconds` is believed before a process of this script's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitrank import environment, paths, records
from bitrank.errors import UserError
from reporting import (
    ROOT,
    add_results_option,
    show_spread,
    spread,
    table,
    write_result,
)

RECORDS = {"evaluate": tuple(f"evaluate-{subject}" for subject in paths.SUBJECTS)}
"""The records of a script, where it is not the one of its own name."""
DEFINITIONS = {
    "import_seconds": "from the start of a process to the begin of the stage's work: interpreter, "
    "imports of the script",
    "work_seconds": "the record's wall_seconds: the stage's work, libraries that it imports on its "
    "way included; null where a stage leaves no record",
    "total_seconds": "of the whole `dvc repro` that wrote the records, as given",
    "else_seconds": "total - work - imports: DVC, hashing, stages without a record, ends of "
    "processes",
}
LOAD = "import runpy, sys, time; sys.path.insert(0, 'src'); runpy.run_path(sys.argv[1]); "
CODE = LOAD + "print(time.time())"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Start-up and share of everything else.")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each stage, in turns")
    parser.add_argument("--total", type=float, help="seconds of the `dvc repro` of the records")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    scripts = sorted((ROOT / "stages").glob("*.py"))
    found: dict[str, list[float]] = {script.stem: [] for script in scripts}
    for _ in range(options.rounds):
        for script in scripts:
            found[script.stem].append(time_import(script))
    stages = {name: describe_stage(name, seconds) for name, seconds in found.items()}
    shares = share_of_run(stages, options.total)
    print(show(stages))
    print("\n".join(show_shares(shares)))
    body = {"definitions": DEFINITIONS, "stages": stages, "run": shares}
    print(f"record: {write_result(options.results, 'startup', body, environment.describe())}")


def time_import(script: Path) -> float:
    """Seconds until the script's `work` would be called."""
    start = time.time()  # a clock that two processes share
    ended = subprocess.run(
        [sys.executable, "-c", CODE, str(script)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise UserError(f"{script.name} cannot be imported: {ended.stderr.strip()}")
    return float(ended.stdout.split()[-1]) - start


def describe_stage(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Import time, and what the records of a stage say of its last run."""
    observations = []
    for record in RECORDS.get(name, (name,)):
        path = paths.record(record)
        if path.is_file():
            observations.append(records.read_record(path).observation)
    own = [one["import_seconds"] for one in observations if one.get("import_seconds") is not None]
    measured = spread(seconds)
    return {
        "processes": max(1, len(observations)),
        "measured_import_seconds": measured,
        "recorded_import_seconds": own or None,
        "import_seconds": sum(own) if own else measured["median"] * max(1, len(observations)),
        "work_seconds": sum(one["wall_seconds"] for one in observations) if observations else None,
    }


def share_of_run(
    stages: Mapping[str, Mapping[str, Any]], total: float | None
) -> dict[str, float | None]:
    """Seconds and shares of work, imports and everything else; null where the total is unknown.

    Raises:
        UserError: a total that is less than its parts, so not that of these records.
    """
    work = sum(stage["work_seconds"] or 0.0 for stage in stages.values())
    imports = sum(stage["import_seconds"] for stage in stages.values())
    parts = {"work_seconds": work, "import_seconds": imports, "total_seconds": total}
    if total is None:
        return {**parts, "else_seconds": None, "work_share": None}
    if total < work:
        raise UserError(
            f"the records' work takes {work:.1f} s, the run is said to have taken {total:.1f} s: "
            "the total is of another run"
        )
    # Imports may be timed on another day than the run: a rest below zero is noise.
    return {**parts, "else_seconds": max(0.0, total - work - imports), "work_share": work / total}


def show(stages: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["stage", "processes", "import, s", "work, s"]]
    for name, stage in stages.items():
        work = "no record" if stage["work_seconds"] is None else f"{stage['work_seconds']:.1f}"
        shown = show_spread(stage["measured_import_seconds"]["all"], 2)
        rows.append([name, str(stage["processes"]), shown, work])
    return table(rows)


def show_shares(shares: Mapping[str, float | None]) -> list[str]:
    total, work = shares["total_seconds"], shares["work_seconds"]
    lines = [f"work of all records: {work:.1f} s; imports: {shares['import_seconds']:.1f} s"]
    if total is None:
        return [*lines, "share of a run: unknown, give --total"]
    return [
        *lines,
        f"of {total:.1f} s: {shares['work_share']:.1%} work, "
        f"{(shares['import_seconds'] or 0) / total:.1%} imports, "
        f"{(shares['else_seconds'] or 0) / total:.1%} everything else",
    ]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
