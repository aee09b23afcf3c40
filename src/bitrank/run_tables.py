"""The tables of one run: what the models score, what changed, and what training costs.

Changes are compared item by item wherever both item logs are at hand (see `statistics`); each
carries a verdict, so that nobody reads an effect into noise. "Before" is the quantized base that
the adapter was trained on: the effects of quantization and of training stay separate numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import cast

from bitrank.runs import ANSWERING, CONTROL, TASK, Run
from bitrank.statistics import Column as Col
from bitrank.statistics import (
    Difference,
    compare_accuracy,
    compare_nll,
    compare_unpaired,
    pair_items,
)
from bitrank.tables import (
    MISSING,
    NOT_APPLICABLE,
    UNKNOWN,
    Cell,
    Column,
    Table,
    interval,
    look_up,
    measured,
    show,
    text,
)

LABELS = {
    "original": "original base",
    "quantized": "quantized base",
    "adapter": "base + adapter",
    "merged": "merged model",
    "control": "TF-IDF + logistic regression",
}
MAJORITY = "majority share"
CHANGES = (
    ("effect of training", "quantized", "adapter", ("nll", "acc")),
    ("effect of quantization", "original", "quantized", ("nll", "acc")),
    ("effect of merging", "adapter", "merged", ("nll", "acc")),
    ("lead over the bag of words", "control", "adapter", ("choice_nll", "acc")),
)
"""(what, from, to, metrics). A bag of words knows the choices only, so it has no NLL to compare."""
METRICS = {
    "nll": "NLL (nats)", "nll_per_token": "NLL per token (nats)",
    "choice_nll": "choice NLL (nats)", "acc": "accuracy",
}  # fmt: skip
"""What items are compared by; other metrics are shown under lm-eval's names."""
MEMORY_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")


def compare(run: Run, task: str, metric: str, first: str, second: str) -> Difference | None:
    """The change of one of `METRICS` from one subject to another.

    Paired by item where both logs are there, from the records' standard errors where not; null
    where a score is missing.
    """
    logs = [run.items.get((subject, task)) for subject in (first, second)]
    if logs[0] and logs[1]:
        pairs = pair_items(logs[0], logs[1])
        difference = (
            compare_accuracy(pairs) if metric == "acc" else compare_nll(pairs, cast(Col, metric))
        )
        if difference is not None:
            return difference
    before, after = run.score(first, task, metric), run.score(second, task, metric)
    if before is None or after is None:
        return None
    errors = [run.score(subject, task, f"{metric}_stderr") for subject in (first, second)]
    return compare_unpaired(before, errors[0], after, errors[1])


def verdict(difference: Difference | None, metric: str) -> str:
    """Better, worse, or why neither can be said. Only of accuracy is more better."""
    if difference is None:
        return UNKNOWN
    if difference.outcome == "separable":
        return "better" if (difference.mean < 0) == (metric != "acc") else "worse"
    return difference.outcome


_WITHOUT_ERROR = ("num_items", "perplexity", "per_byte")


def score_cell(run: Run, subject: str, task: str, metric: str) -> Cell:
    """A score with its standard error; without, where the metric has none."""
    if ANSWERING[subject] not in run.records:
        return Cell(MISSING)
    if task in run.benchmarks and not run.find(ANSWERING[subject], "result", "tasks", task):
        return Cell(NOT_APPLICABLE)
    if run.find(ANSWERING[subject], "result", "why_not"):  # there is no such model
        return Cell(NOT_APPLICABLE)
    value = run.score(subject, task, metric)
    stderr = run.score(subject, task, f"{metric}_stderr")
    return show(value) if metric.endswith(_WITHOUT_ERROR) else measured(value, stderr)


def label_of(run: Run, subject: str) -> str:
    """What a subject is called, by what it was in this run.

    A bag of words classifies, or copies the answer of a neighbour.
    """
    classifier = run.find("control", "treatment", "classifier")
    precision = ("quantize", "treatment", "precision", "num_quantized_layers")
    if subject == CONTROL and classifier is not None:
        return f"TF-IDF + {classifier}"
    if subject == "adapter" and run.is_full:
        return "fully tuned model"
    if subject == "quantized" and run.find(*precision) == 0:
        return "unquantized base"
    return LABELS[subject]


def scores_table(run: Run) -> Table:
    """The four subjects on the trained task, with the controls beside them."""
    none = Cell(NOT_APPLICABLE)
    free_text = run.find("prepare", "treatment", "task", "kind") == "generation"
    rows = [
        [
            text(label_of(run, subject)),
            score_cell(run, subject, TASK, "acc"),
            none if subject == CONTROL else score_cell(run, subject, TASK, "nll"),
            none if free_text else score_cell(run, subject, TASK, "choice_nll"),
            score_cell(run, subject, TASK, "num_items"),
        ]
        for subject in LABELS
    ]
    share = look_up(run, "prepare", "result", "majority_share", kind="plain")
    test_rows = look_up(run, "prepare", "result", "splits", "test", "num_rows")
    rows.append([text(MAJORITY), share, none, none, test_rows])
    return Table(
        name="scores",
        title="Scores on the trained task",
        columns=[
            Column("subject", "Model"),
            Column("acc", "Accuracy", with_stderr=True),
            Column("nll", "NLL (nats)", with_stderr=True),
            Column("choice_nll", "Choice NLL (nats)", with_stderr=True),
            Column("num_items", "Items"),
        ],
        rows=rows,
        notes=[
            "Mean ± standard error over the test items. NLL: −log p of the right answer over the "
            "whole vocabulary. Choice NLL: −log of its share among the choices. Accuracy of free "
            "text: the share of exact matches.",
            *_chance(run),
        ],
    )


def _chance(run: Run) -> Iterator[str]:
    choices = run.find("prepare", "result", "num_choices")
    if choices:
        yield (
            f"Guessing evenly among {choices} choices reaches accuracy {1 / choices:.3f} "
            f"and choice NLL {log(choices):.3f}."
        )


def differences_table(run: Run) -> Table:
    rows = [
        [text(name), *change_cells(run, TASK, metric, first, second)]
        for name, first, second, metrics in CHANGES
        if not run.find(ANSWERING[second], "result", "why_not")
        for metric in metrics
    ]
    return Table(
        name="differences",
        title="What changed, and whether noise can explain it",
        columns=[Column("change", "Change"), *change_columns("from", "to", "From", "To")],
        rows=rows,
        notes=[CHANGE_NOTE],
    )


def memory_table(run: Run) -> Table:
    """The peak of one training step by what holds it, and what was predicted of it."""
    where = ("measure", "result", "train_memory")
    peak = run.find(*where, "peak_bytes")
    rows = []
    for part in (*MEMORY_PARTS, "peak"):
        held = run.find(*where, f"{part}_bytes")
        share = held / peak if held is not None and peak else None
        label = "peak of the step" if part == "peak" else part
        bytes_held = look_up(run, *where, f"{part}_bytes")
        rows.append([text(label), bytes_held, Cell(MISSING) if "measure" not in run.records
                     else show(share, "share")])  # fmt: skip
    expected = run.find(*where, "predicted", "peak_bytes")
    rows.append([text("predicted"), look_up(run, *where, "predicted", "peak_bytes"),
                 Cell(MISSING) if "measure" not in run.records
                 else show(expected / peak if expected and peak else None, "share")])  # fmt: skip
    definition = run.find(*where, "definition")
    return Table(
        name="memory",
        title="Memory of one training step at its peak",
        columns=[Column("part", "Part"), Column("bytes", "Held"), Column("share", "Share")],
        rows=rows,
        notes=[f"Definition: {definition}."] if definition else [],
    )


CHANGE_NOTE = (
    "Mean change ± standard error, item by item where the pairs are counted. "
    "NLL is separable at 1.96 standard errors (its 95 % interval then leaves out 0), accuracy by "
    "the exact sign test at 5 %; "
    "“the same” means no item differs beyond rounding."
)


def change_columns(first: str, second: str, *headings: str) -> list[Column]:
    return [
        Column("metric", "Metric"),
        Column(first, headings[0], with_stderr=True),
        Column(second, headings[1], with_stderr=True),
        Column("difference", "Difference", with_stderr=True),
        Column("num_pairs", "Pairs"),
        Column("verdict", "Verdict"),
    ]


def change_cells(run: Run, task: str, metric: str, first: str, second: str) -> Iterator[Cell]:
    yield Cell(METRICS.get(metric, metric), metric)
    yield score_cell(run, first, task, metric)
    yield score_cell(run, second, task, metric)
    if metric not in METRICS:
        yield from [Cell(NOT_APPLICABLE)] * 3
        return
    difference = compare(run, task, metric, first, second)
    if difference is None:
        known = all(ANSWERING[subject] in run.records for subject in (first, second))
        yield from [Cell(UNKNOWN if known else MISSING)] * 3
        return
    yield measured(difference.mean, difference.stderr, signed=True)
    pairs = difference.num_pairs
    yield Cell("unpaired") if pairs is None else show(pairs)
    yield text(verdict(difference, metric))


def interval_cell(difference: Difference | None) -> Cell:
    """The 95 % confidence interval of a change."""
    ends = difference.interval if difference else None
    if difference is None or ends is None:
        return Cell(UNKNOWN)
    return interval(*ends, difference.stderr or 0.0)
