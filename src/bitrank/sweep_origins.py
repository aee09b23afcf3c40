"""Where a sweep's numbers come from: every run, and what became of every point.

The table of the points leads from a run's key to commit, lock and hardware.
"""

from __future__ import annotations

from bitrank import paths
from bitrank.projection import METRICS
from bitrank.runs import CONTROL, TASK
from bitrank.study import Study
from bitrank.sweep_tables import keys_cell, name_of
from bitrank.swept_runs import SweptRun, validation_loss
from bitrank.tables import NOT_APPLICABLE, UNKNOWN, Cell, Column, Table, show, text


def runs_table(study: Study) -> Table:
    """One row a run: where the means come from."""
    metrics = [(subject, metric) for subject in (*paths.SUBJECTS, CONTROL)
               for metric in ("acc", "nll" if subject != CONTROL else "choice_nll")]  # fmt: skip
    rows = []
    for configuration in study.configurations:
        for swept in configuration.runs:
            scores = [show(swept.run.score(subject, TASK, name)) for subject, name in metrics]
            rows.append([
                keys_cell([swept.key], swept.key), Cell(name_of(configuration), configuration.name),
                text(" ".join(dict.fromkeys(swept.seed))), *scores,
                show(validation_loss(swept.run)),
                show(swept.run.find(*METRICS["memory/train_peak_bytes"]), "bytes"),
                show(swept.run.find(*METRICS["speed/train_tokens_per_second"]), "rate"),
                show(swept.run.find("train", "result", "adapter_hash"), "hash"),
            ])  # fmt: skip
    return Table(
        name="runs",
        title="Every run",
        columns=[
            Column("run", "Run"), Column("configuration", "Configuration"), Column("seed", "Seed"),
            *(Column(f"{m}_{s}", f"{m} {s}".replace("_", " ")) for s, m in metrics),
            Column("validation_loss", "Validation loss"), Column("peak_bytes", "Peak of a step"),
            Column("train_tokens_per_second", "Training"), Column("adapter_hash", "Adapter"),
        ],
        rows=rows,
    )  # fmt: skip


def points_table(study: Study) -> Table:
    """Every point of the sweep with its fate, and what its numbers trace back to."""
    read = {run.key: run for run in study.runs}
    unread = {left.key: left for left in study.left_out}
    rows = []
    for point in study.sweep.points:
        swept, left = read.get(point.key), unread.get(point.key)
        commits = [] if swept is None else sorted(_commits(swept))
        rows.append([
            text(point.key),
            text(point.status if left is None else left.status),
            Cell(NOT_APPLICABLE) if left is None else show(left.reason),
            show(point.seconds, "seconds"),
            Cell(", ".join(c[:12] for c in commits) or UNKNOWN, " ".join(commits) or None),
            show(point.entry.get("lock_sha256"), "hash"),
            Cell(NOT_APPLICABLE) if swept is None else text(swept.hardware),
        ])  # fmt: skip
    return Table(
        name="points",
        title="Every point of the sweep",
        columns=[
            Column("run", "Run"), Column("status", "Status"), Column("reason", "Reason"),
            Column("seconds", "Took"), Column("commits", "Commit of its records"),
            Column("lock_sha256", "dvc.lock"), Column("hardware", "Hardware"),
        ],
        rows=rows,
        notes=[
            "Results that were restored name the commit that computed them. In MLflow a run is "
            f'found by tags."bitrank.key" = "{study.sweep.id}/<run>"; its records and item logs '
            f"stand beside this report, in {study.sweep.id}/<run>."
        ],
        tells_runs=True,
    )  # fmt: skip


def _commits(swept: SweptRun) -> set[str]:
    run = swept.run
    found = {run.find(s, "observation", "environment", "git_commit") for s in run.records}
    return {str(commit) for commit in found if commit}
