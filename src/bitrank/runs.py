"""What one run left behind, read from JSON: its records and its item logs.

A run may be incomplete (a stage failed, a benchmark was not asked for), so everything is looked
up and may be absent: a missing record and an unknown value are told apart and never become 0.
Nothing here computes or needs torch, so that a report can be made anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank import paths
from bitrank.errors import UserError
from bitrank.records import Item, Record, read_items, read_record

TASK = "task"
"""The trained task's name in the evaluation records."""
CONTROL = "control"
"""The bag of words, which answers the trained task's items as the models do."""
ANSWERING = {**{subject: f"evaluate-{subject}" for subject in paths.SUBJECTS}, CONTROL: "control"}
"""Who answered items, with the stage whose record holds the scores and names the item logs."""
STAGES = (
    "fetch", "prepare", "benchmarks", "quantize", "control", "train", "measure", "merge",
    "fidelity",
    *(f"evaluate-{subject}" for subject in paths.SUBJECTS),
)  # fmt: skip
"""The stages whose records a report reads, in the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    records: Mapping[str, Record]
    """By stage; a stage that left no record is absent."""
    items: Mapping[tuple[str, str], Sequence[Item]]
    """By subject (see `ANSWERING`) and task."""

    def find(self, stage: str, *keys: str) -> Any:
        """The value under `keys`, the first being a part of the record; null where it ends.

        A number in digits counts the entries of a list, from 0.
        """
        record = self.records.get(stage)
        value: Any = None if record is None else vars(record)
        for key in keys:
            if isinstance(value, list):
                value = {str(index): entry for index, entry in enumerate(value)}
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def score(self, subject: str, task: str, metric: str) -> Any:
        """A metric of one who answered; the control's stand in its result itself."""
        if subject == CONTROL:
            return self.find(CONTROL, "result", metric) if task == TASK else None
        return self.find(ANSWERING[subject], "result", "tasks", task, metric)

    @property
    def is_full(self) -> bool:
        """Whether every weight was trained: there is no adapter to speak of."""
        return self.method == "full"

    @property
    def method(self) -> str | None:
        """`adapter.method`, as the live model told it."""
        found: str | None = self.find("train", "treatment", "adapter", "method")
        return found

    @property
    def missing(self) -> list[str]:
        return [stage for stage in STAGES if stage not in self.records]

    @property
    def benchmarks(self) -> list[str]:
        """Tasks that any subject answered beside the trained one, sorted."""
        asked = (self.find(f"evaluate-{s}", "result", "tasks") or {} for s in paths.SUBJECTS)
        return sorted({name for tasks in asked for name in tasks} - {TASK})


def read_run(results: Path, item_folders: Mapping[str, Path]) -> Run:
    """Read the records in `results` and each subject's item logs, as far as they are there.

    Raises:
        UserError: there is no record at all, one cannot be read, or an item log is not the one
            that its record names.
    """
    there = {stage: paths.record(stage, results) for stage in STAGES}
    found = {s: read_record(path) for s, path in there.items() if path.is_file()}
    if not found:
        raise UserError(f"{results} holds no record of a stage; `dvc repro` makes them")
    items = {}
    for subject, folder in item_folders.items():
        stage = ANSWERING[subject]
        logs = found[stage].result.get("items", {}) if stage in found else {}
        for task, sha256 in logs.items():
            log = folder / f"{task}.jsonl"
            if log.is_file():
                _check_log(log, sha256, there[stage])
                items[subject, task] = read_items(log)
    return Run(records=found, items=items)


def _check_log(log: Path, sha256: str, record: Path) -> None:
    if hashlib.sha256(log.read_bytes()).hexdigest() != sha256:
        raise UserError(
            f"{log} is not the item log that {record} names; `dvc repro` brings them together"
        )
