"""The tables of one run: what the models score, what changed, and what training costs.

Changes are compared item by item wherever both item logs are at hand (see `statistics`); each
carries a verdict, so that nobody reads an effect into noise. "Before" is the quantized base that
the adapter was trained on: loss by quantization and gain by training stay separate numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitrank import paths
from bitrank.runs import TASK, Run
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
}
CONTROL = "TF-IDF + logistic regression"
MAJORITY = "majority share"
CHANGES = (
    ("gain by the adapter", "quantized", "adapter"),
    ("loss by quantization", "original", "quantized"),
    ("loss by merging", "adapter", "merged"),
)
MEMORY_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")


def compare(run: Run, task: str, metric: str, first: str, second: str) -> Difference | None:
    """The change of "nll" or "acc" from one subject to another.

    Paired by item where both logs are there, from the records' standard errors where not; null
    where a score is missing.
    """
    logs = [run.items.get((subject, task)) for subject in (first, second)]
    if logs[0] and logs[1]:
        pairs = pair_items(logs[0], logs[1])
        difference = compare_nll(pairs) if metric == "nll" else compare_accuracy(pairs)
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


def score_cell(run: Run, subject: str, task: str, metric: str) -> Cell:
    """A score with its standard error; without one, where the metric has none."""
    if f"evaluate-{subject}" not in run.records:
        return Cell(MISSING)
    value = run.score(subject, task, metric)
    stderr = run.score(subject, task, f"{metric}_stderr")
    tasks = run.find(f"evaluate-{subject}", "result", "tasks", task) or {}
    has_error = f"{metric}_stderr" in tasks
    return measured(value, stderr) if has_error else show(value)


def scores_table(run: Run) -> Table:
    """The four subjects on the trained task, with the controls beside them."""
    metrics = ("acc", "nll", "choice_nll")
    rows = [
        [
            text(LABELS[subject]),
            *(score_cell(run, subject, TASK, metric) for metric in metrics),
            look_up(run, f"evaluate-{subject}", "result", "tasks", TASK, "num_items"),
        ]
        for subject in paths.SUBJECTS
    ]
    control = Cell(MISSING)
    if "control" in run.records:
        found = [run.find("control", "result", key) for key in ("acc", "acc_stderr")]
        control = measured(found[0], found[1])
    none = Cell(NOT_APPLICABLE)
    control_nll = look_up(run, "control", "result", "choice_nll")
    rows += [
        [text(CONTROL), control, none, control_nll, look_up(run, "control", "result", "num_items")],
        [text(MAJORITY), look_up(run, "prepare", "result", "majority_share", kind="plain"), none,
         none, look_up(run, "prepare", "result", "splits", "test", "num_rows")],
    ]  # fmt: skip
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
            "whole vocabulary. Choice NLL: −log of its share among the choices.",
        ],
    )


def differences_table(run: Run) -> Table:
    rows = [
        [text(name), *_change_cells(run, TASK, metric, first, second)]
        for name, first, second in CHANGES
        for metric in ("nll", "acc")
    ]
    return Table(
        name="differences",
        title="What changed, and whether noise can explain it",
        columns=[Column("change", "Change"), *_change_columns("from", "to", "From", "To")],
        rows=rows,
        notes=[_CHANGE_NOTE],
    )


def forgetting_table(run: Run) -> Table:
    """Each benchmark before training (quantized base) and after (base + adapter)."""
    rows = [
        [text(task), *_change_cells(run, task, metric, "quantized", "adapter")]
        for task in run.benchmarks
        for metric in _metrics(run, task)
    ]
    return Table(
        name="forgetting",
        title="What was not trained, before and after training",
        columns=[
            Column("benchmark", "Benchmark"),
            *_change_columns("before", "after", "Before: quantized base", "After: base + adapter"),
        ],
        rows=rows,
        notes=["Perplexities follow from the NLL and have no standard error of their own. "
               + _CHANGE_NOTE],
    )  # fmt: skip


def benchmarks_table(run: Run) -> Table:
    """Every metric of every benchmark, for the four subjects."""
    rows = [
        [text(task), text(metric), *(score_cell(run, s, task, metric) for s in paths.SUBJECTS)]
        for task in run.benchmarks
        for metric in _metrics(run, task)
    ]
    subjects = [Column(s, LABELS[s].capitalize(), with_stderr=True) for s in paths.SUBJECTS]
    return Table(
        name="benchmarks",
        title="Benchmarks beside the trained task",
        columns=[Column("benchmark", "Benchmark"), Column("metric", "Metric"), *subjects],
        rows=rows,
    )


def memory_table(run: Run) -> Table:
    """The peak of one training step by what holds it."""
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
    definition = run.find(*where, "definition")
    return Table(
        name="memory",
        title="Memory of one training step at its peak",
        columns=[Column("part", "Part"), Column("bytes", "Held"), Column("share", "Share")],
        rows=rows,
        notes=[f"Definition: {definition}."] if definition else [],
    )


_CHANGE_NOTE = (
    "Mean change ± standard error, item by item where the pairs are counted. "
    "NLL is separable at 1.96 standard errors, accuracy by the exact sign test at 5 %; "
    "“the same” means no item differs beyond rounding."
)


def _change_columns(first: str, second: str, *headings: str) -> list[Column]:
    return [
        Column("metric", "Metric"),
        Column(first, headings[0], with_stderr=True),
        Column(second, headings[1], with_stderr=True),
        Column("difference", "Difference", with_stderr=True),
        Column("num_pairs", "Pairs"),
        Column("verdict", "Verdict"),
    ]


def _change_cells(run: Run, task: str, metric: str, first: str, second: str) -> Iterator[Cell]:
    yield text(metric)
    yield score_cell(run, first, task, metric)
    yield score_cell(run, second, task, metric)
    if metric not in ("nll", "acc"):
        yield from (Cell(NOT_APPLICABLE), Cell(NOT_APPLICABLE), Cell(NOT_APPLICABLE))
        return
    difference = compare(run, task, metric, first, second)
    if difference is None:
        yield from (Cell(UNKNOWN), Cell(UNKNOWN))
    else:
        yield measured(difference.mean, difference.stderr, signed=True)
        pairs = difference.num_pairs
        yield Cell("unpaired") if pairs is None else show(pairs)
    yield text(verdict(difference, metric))


def _metrics(run: Run, task: str) -> list[str]:
    """The metrics that any subject has for a task, NLL and accuracy first."""
    found: set[str] = set()
    for subject in paths.SUBJECTS:
        scores = run.find(f"evaluate-{subject}", "result", "tasks", task) or {}
        found |= {key for key in scores if not key.endswith("_stderr") and key[:4] != "num_"}
    return sorted(found, key=lambda metric: (metric not in ("nll", "acc"), metric))
