"""Where each artifact lives, relative to the project's root. The only place that joins paths."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path("data")
PROJECT = Path(os.path.relpath(os.environ.get("DVC_ROOT", ".")))
"""The main project: `dvc exp run --queue` runs stages in temporary copies and names it to them."""
DOWNLOADS = PROJECT / DATA / "downloads"
"""Wheels by sha256; not an out of any stage, so that a re-run does not download again."""
CHECKPOINTS = PROJECT / DATA / "checkpoints"
"""Of trainings that have not ended; no out either, since DVC deletes those before a stage runs."""
ORIGINAL = DATA / "base" / "original"
QUANTIZED = DATA / "base" / "quantized"
TOKENIZER = DATA / "base" / "tokenizer"
PREPARED = DATA / "prepared"
AUDIT = DATA / "audit"
BENCHMARKS = DATA / "benchmarks"
ADAPTER = DATA / "adapter"
MERGED = DATA / "merged"
REPORT = DATA / "report"
RESULTS = DATA / "results"
METRICS = RESULTS / "metrics.json"
HARDWARE = DATA / "hardware.json"
MLFLOW = DATA / "mlflow"
SWEEPS = DATA / "sweeps"
"""What is kept of each sweep: its manifest, and of each point configuration, lock and records."""
PAPERS = DATA / "papers"
"""What git keeps of chosen sweeps, and their reports."""
WORKSPACES = Path(".dvc") / "tmp" / "sweeps"
"""Where points run; DVC does not look for pipelines below its own folder."""

SPLITS = ("train", "validation", "test")
SUBJECTS = ("original", "quantized", "adapter", "merged")
"""The four models that are evaluated, in the order in which they are shown."""


def split(name: str, prepared: Path = PREPARED) -> Path:
    return prepared / f"{name}.jsonl"


def template(prepared: Path = PREPARED) -> Path:
    """The hash of the template that the rows of the splits were put into."""
    return prepared / "template.json"


def record(stage: str, results: Path = RESULTS) -> Path:
    """The record of a stage; `evaluate` has one for each subject ("evaluate-adapter")."""
    return results / f"{stage}.json"


def items(subject: str) -> Path:
    """Folder of the item logs of one evaluated model, one file a task."""
    return DATA / "items" / subject
