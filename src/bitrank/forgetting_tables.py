"""What training cost elsewhere: the benchmarks before it and after it, the same items paired."""

from __future__ import annotations

from collections.abc import Iterator

from bitrank import paths
from bitrank.run_tables import (
    CHANGE_NOTE,
    METRICS,
    change_cells,
    change_columns,
    compare,
    interval_cell,
    label_of,
    score_cell,
    verdict,
)
from bitrank.runs import Run
from bitrank.tables import NOT_APPLICABLE, Cell, Column, Table, measured, text

BEFORE, AFTER = "quantized", "adapter"
METRIC_WORDS = {"nll_per_token": "NLL per token", "acc": "accuracy"}
"""What tells what was forgotten; less of the one and more of the other are better."""


def forgetting_table(run: Run) -> Table:
    """Each benchmark before training and after, the same items paired."""
    rows = [
        [
            text(task),
            *change_cells(run, task, metric, BEFORE, AFTER),
            interval_cell(compare(run, task, metric, BEFORE, AFTER))
            if metric in METRIC_WORDS
            else Cell(NOT_APPLICABLE),
        ]
        for task in run.benchmarks
        for metric in metrics_of(run, task)
        if metric in METRIC_WORDS or metric.endswith("perplexity")
    ]
    return Table(
        name="forgetting",
        title=f"What was not trained: {label_of(run, BEFORE)} before, "
        f"{label_of(run, AFTER)} after",
        columns=[
            Column("benchmark", "Benchmark"),
            *change_columns("before", "after", "Before", "After"),
            Column("interval", "95 % interval"),
        ],
        rows=rows,
        notes=["NLL per token weighs each text alike. Perplexities follow from the NLL and have no "
               "standard error of their own. " + CHANGE_NOTE],
    )  # fmt: skip


def benchmarks_table(run: Run) -> Table:
    """Every metric of every benchmark, for the four subjects."""
    rows = [
        [text(task), text(metric), *(score_cell(run, s, task, metric) for s in paths.SUBJECTS)]
        for task in run.benchmarks
        for metric in metrics_of(run, task)
    ]
    subjects = [Column(s, label_of(run, s).capitalize(), with_stderr=True) for s in paths.SUBJECTS]
    return Table(
        name="benchmarks",
        title="Benchmarks beside the trained task",
        columns=[Column("benchmark", "Benchmark"), Column("metric", "Metric"), *subjects],
        rows=rows,
    )


def metrics_of(run: Run, task: str) -> list[str]:
    """The metrics that any subject has for a task, NLL and accuracy first."""
    found: set[str] = set()
    for subject in paths.SUBJECTS:
        scores = run.find(f"evaluate-{subject}", "result", "tasks", task) or {}
        found |= {key for key in scores if not key.endswith("_stderr") and key[:4] != "num_"}
    return sorted(found, key=lambda metric: (metric not in METRICS, metric))


def write_forgotten(run: Run) -> Iterator[str]:
    """One sentence a benchmark: whether training cost it more than noise explains, and how much."""
    for task in run.benchmarks:
        told, verdicts = [], set()
        for metric, words in METRIC_WORDS.items():
            difference = compare(run, task, metric, BEFORE, AFTER)
            if difference is None:
                continue
            verdicts.add(verdict(difference, metric))
            shown = measured(difference.mean, difference.stderr, signed=True).text
            ends = interval_cell(difference).text
            told.append(f"{words} {shown} (95 % interval {ends}: {verdict(difference, metric)})")
        if told:
            yield f"{_judge_forgetting(verdicts, task)}: {', '.join(told)}."


def _judge_forgetting(verdicts: set[str], task: str) -> str:
    if "worse" in verdicts:
        return f"Forgotten on {task}, which was not trained"
    if "better" in verdicts:
        return f"Better on {task}, though it was not trained"
    if "unknown" in verdicts:
        return f"On {task}, which was not trained, the noise is unknown"
    return f"Nothing forgotten on {task}, which was not trained, that noise cannot explain"
