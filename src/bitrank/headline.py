"""The few numbers of a run that `dvc exp show` and `dvc metrics diff` put side by side.

A DVC table has a column for each number of a metrics file. The records have hundreds, so they are
no metrics; this file has those that decide between two runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitrank import records
from bitrank.paths import SUBJECTS
from bitrank.runs import TASK, read_run

SCORES = ("acc", "nll", "nll_stderr")
"""Of each subject on the trained task; NLL in nats."""
COSTS = {
    "train_peak_bytes": ("measure", "result", "train_memory", "peak_bytes"),
    "train_tokens_per_second": ("measure", "observation", "train_speed", "tokens_per_second"),
    "adapter_bytes": ("train", "result", "adapter_bytes"),
    "merge_mean_kl": ("merge", "result", "check", "mean_kl"),
}
"""Where each stands in the records: stage, part, keys."""


def write_metrics(results: Path, target: Path) -> None:
    """Write the headline of the run in `results`; what is unknown is null, which DVC shows as "-".

    Raises:
        UserError: no record in `results`, or one that cannot be read.
    """
    run = read_run(results, {})
    scores: dict[str, Any] = {
        metric: {subject: run.score(subject, TASK, metric) for subject in SUBJECTS}
        for metric in SCORES
    }
    costs = {name: run.find(*where) for name, where in COSTS.items()}
    records.write_text(target, json.dumps({**scores, **costs}, indent=2, allow_nan=False) + "\n")
