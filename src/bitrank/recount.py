"""A point's records held against each other and against its item logs.

The scores are computed anew by formulas that stand here a second time on purpose: what wrote a
record is not asked whether the record is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bitrank import identity, paths, provenance, records, runs
from bitrank.errors import UserError
from bitrank.inspection import Fault, Inspection, short
from bitrank.records import Item
from bitrank.runs import Run

CHAIN, LOGS, SCORES = "hand-overs between records", "item logs", "scores, from the item logs"
SAME = 1e-9
"""Relative; the order in which doubles are added up is the only freedom."""


@dataclass(frozen=True)
class Log:
    """An item log that a record names, and the scores that the record has of it."""

    stage: str
    field: str
    """Where in the record the scores stand."""
    file: Path
    sha256: str
    scores: Mapping[str, Any]


def inspect_records(key: str, folder: Path, found: Inspection) -> None:
    """Look at the records and item logs in a point's folder."""
    try:
        run = runs.read_run(folder / "results", {})
    except UserError as error:
        found.expect(CHAIN, False, Fault(key, "results", "", str(error)))
        return
    for stage, record in run.records.items():
        fault = Fault(key, f"results/{stage}.json", "stage", f"is a record of {record.stage!r}")
        found.expect(CHAIN, record.stage == stage, fault)
    for link in provenance.links(run):
        if None not in (link.made, link.used):
            detail = (f"{link.user} used {short(link.used)}, "
                      f"{link.maker} made {short(link.made)}")  # fmt: skip
            fault = Fault(key, f"results/{link.user}.json", link.what, detail)
            found.expect(CHAIN, not link.is_broken, fault)
    for log in _logs(run, folder / "items"):
        _inspect_log(key, log, folder, found)


def _logs(run: Run, items: Path) -> Iterator[Log]:
    for subject, stage in runs.ANSWERING.items():
        for task, sha256 in (run.find(stage, "result", "items") or {}).items():
            where = [] if subject == runs.CONTROL else ["tasks", task]
            scores = run.find(stage, "result", *where) or {}
            file = items / subject / f"{task}.jsonl"
            yield Log(stage, ".".join(["result", *where]), file, sha256, scores)
    for name, sha256 in (run.find("fidelity", "result", "items") or {}).items():
        where = ["scores", *name.split("/", 1)]
        scores = run.find("fidelity", "result", *where) or {}
        file = items / "fidelity" / f"{name}.jsonl"
        yield Log("fidelity", ".".join(["result", *where]), file, sha256, scores)


def _inspect_log(key: str, log: Log, folder: Path, found: Inspection) -> None:
    file = log.file.relative_to(folder).as_posix()
    there = identity.hash_file(log.file) if log.file.is_file() else None
    is_missing = "is missing; " if there is None else f"has the hash {short(there)}, "
    detail = f"{is_missing}{paths.record(log.stage, Path('results'))} names {short(log.sha256)}"
    found.expect(LOGS, there == log.sha256, Fault(key, file, "sha256", detail))
    if there is None:
        return
    try:
        counted = count(records.read_items(log.file))
    except (ValueError, TypeError) as error:
        found.expect(SCORES, False, Fault(key, file, "", f"cannot be read: {error}"))
        return
    for metric, value in counted.items():
        told = log.scores.get(metric)
        if told is not None:
            good = value is not None and math.isclose(told, value, rel_tol=SAME, abs_tol=1e-12)
            name = f"{log.field}.{metric}"
            detail = f"is {told!r}; the items of {file} give {value!r}"
            found.expect(SCORES, good, Fault(key, f"results/{log.stage}.json", name, detail))


def count(items: Sequence[Item]) -> dict[str, float | int | None]:
    """What follows from the items alone: means over them in nats, with standard errors.

    Perplexities and `acc_norm` also need the documents' texts, which are not kept.
    """
    columns: dict[str, list[float | None]] = {
        "acc": [None if item.correct is None else float(item.correct) for item in items],
        "nll": [item.nll for item in items],
        "choice_nll": [item.choice_nll for item in items],
        "nll_per_token": [
            item.nll / item.num_tokens if item.nll is not None and item.num_tokens else None
            for item in items
        ],
    }
    found: dict[str, float | int | None] = {"num_items": len(items)}
    for name, column in columns.items():
        values = [value for value in column if value is not None]
        if values:
            found[name] = fmean(values)
            error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
            found[f"{name}_stderr"] = error
    return found
