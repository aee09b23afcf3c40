"""The tables of a sweep: what each configuration scores and costs, and what can be told apart.

The controls stand in every table of scores. Every row names the runs that its numbers come from:
their keys whole in the CSV, their seeds or their number on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bitrank.contrasts import Contrast, describe_family
from bitrank.evidence import rise_on
from bitrank.projection import METRICS
from bitrank.resampling import Estimate, mean_interval
from bitrank.run_tables import label_of, score_cell
from bitrank.runs import CONTROL, TASK
from bitrank.statistics import LEVEL
from bitrank.study import Configuration, Study
from bitrank.swept_runs import SweptRun, is_unquantized
from bitrank.tables import (
    MISSING,
    NOT_APPLICABLE,
    UNKNOWN,
    Cell,
    Column,
    Kind,
    Table,
    ranged,
    show,
    text,
)

COSTS: tuple[tuple[str, str, str, Kind], ...] = (
    ("size_bytes", "Base on disk", "model/size_bytes", "bytes"),
    ("adapter_bytes", "Adapter on disk", "model/adapter_bytes", "bytes"),
    ("peak_bytes", "Peak of a step", "memory/train_peak_bytes", "bytes"),
    ("weights_bytes", "Weights", "memory/weights_bytes", "bytes"),
    ("optimizer_bytes", "Optimizer", "memory/optimizer_bytes", "bytes"),
    ("activations_bytes", "Activations", "memory/activations_bytes", "bytes"),
    ("train_tokens_per_second", "Training", "speed/train_tokens_per_second", "rate"),
    ("decode_tokens_per_second", "Decoding", "speed/decode_tokens_per_second", "rate"),
)
"""(key, heading, metric, kind)."""
RIVALS = {
    "original": "original base", "quantized": "base it was trained on", CONTROL: "bag of words",
}  # fmt: skip
"""What a page calls whom a configuration is compared with; the CSV has the key."""
SCORES = ("acc", "nll", "choice_nll")


def estimate_cell(found: Estimate | None, kind: Kind = "plain", *, signed: bool = False) -> Cell:
    if found is None:
        return Cell(UNKNOWN)
    return ranged(found.mean, found.low, found.high, kind, signed=signed)


def keys_cell(keys: Sequence[str], shown: str) -> Cell:
    """Short on the page, whole in the CSV."""
    return Cell(shown, " ".join(keys), runs=tuple(keys))


def scores_table(study: Study) -> Table:
    """Each configuration over its seeds, and the controls below."""
    rows = [_scores_row(configuration) for configuration in study.configurations]
    rows += list(_control_rows(study))
    columns = [
        Column("configuration", "Configuration"),
        Column("acc", "Accuracy", with_interval=True, with_stderr=True),
        Column("nll", "NLL (nats)", with_interval=True, with_stderr=True),
        Column("choice_nll", "Choice NLL (nats)", with_interval=True, with_stderr=True),
        Column("num_seeds", "Seeds"),
        Column("runs", "Runs"),
    ]
    return Table(
        name="scores",
        title="Scores on the trained task",
        columns=columns,
        rows=rows,
        notes=[
            "Configurations: mean over seeds and its 95 % interval (t), which one seed does not "
            "have. Controls: one answer to each item, ± standard error over the items. "
            "NLL: −log p of the right answer; choice NLL: −log of its share among the choices.",
            *_unchosen_note(study),
        ],
    )


def _unchosen_note(study: Study) -> Iterator[str]:
    if not all(configuration.is_chosen for configuration in study.configurations):
        yield (
            "Not compared further: configurations whose rival with another learning rate has the "
            "lower mean loss on the validation rows (marked *)."
        )


def name_of(configuration: Configuration) -> str:
    return configuration.name if configuration.is_chosen else f"{configuration.name} *"


def _scores_row(configuration: Configuration) -> list[Cell]:
    seeds = [run.params.get("seed", "?") for run in configuration.runs]
    return [
        Cell(name_of(configuration), configuration.name),
        *(estimate_cell(over_seeds(configuration, metric)) for metric in SCORES),
        show(len(configuration.runs)),
        keys_cell(configuration.keys, f"seed {', '.join(seeds)}"),
    ]


def over_seeds(configuration: Configuration, metric: str) -> Estimate | None:
    """Of the tuned model on the trained task; null unless it is known of every run."""
    values = [run.run.score("adapter", TASK, metric) for run in configuration.runs]
    return None if None in values else mean_interval(values)


def _control_rows(study: Study) -> Iterator[list[Cell]]:
    """Each control once for each distinct score; a quantized base is one of each precision.

    An unquantized one is the original.
    """
    seen: dict[tuple[Any, ...], tuple[str, list[SweptRun]]] = {}
    for subject in ("original", "quantized", CONTROL):
        for swept in study.runs:
            scores = [swept.run.score(subject, TASK, metric) for metric in SCORES]
            again = subject == "quantized" and is_unquantized(swept)
            if not again and any(score is not None for score in scores):
                label = _control_label(swept, subject)
                seen.setdefault((label, *scores), (subject, []))[1].append(swept)
    for (label, *_), (subject, runs) in seen.items():
        cells = [score_cell(runs[0].run, subject, TASK, metric) for metric in SCORES]
        if subject == CONTROL:
            cells[SCORES.index("nll")] = Cell(NOT_APPLICABLE)
        keys = [run.key for run in runs]
        yield [text(str(label)), *cells, Cell(NOT_APPLICABLE), keys_cell(keys, f"in {len(keys)}")]
    shares = {run.run.find("prepare", "result", "majority_share") for run in study.runs} - {None}
    for share in sorted(shares):
        none = Cell(NOT_APPLICABLE)
        yield [text("most frequent answer"), show(share), none, none, none, none]


def _control_label(swept: SweptRun, subject: str) -> str:
    label = label_of(swept.run, subject)
    if subject != "quantized":
        return label
    return f"{label} ({swept.params.get('precision.name', '?')})"


def contrasts_table(contrasts: Sequence[Contrast], size: int) -> Table:
    return Table(
        name="contrasts",
        title="Which configurations can be told apart",
        columns=_contrast_columns("From", "To"),
        rows=[_contrast_row(contrast, size) for contrast in contrasts],
        notes=[describe_family(size)],
    )


def controls_table(contrasts: Sequence[Contrast], size: int) -> Table:
    return Table(
        name="controls",
        title="Each configuration against its controls",
        columns=_contrast_columns("Control", "Configuration"),
        rows=[_contrast_row(contrast, size) for contrast in contrasts],
        notes=[
            "The bag of words is compared by the answer's share among the choices, all "
            "others by its probability. " + describe_family(size)
        ],
    )


def _contrast_columns(first: str, second: str) -> list[Column]:
    return [
        Column("from", first),
        Column("to", second),
        Column("nll_change", "NLL change (nats)", with_interval=True),
        Column("nll_p_holm", "p"),
        Column("detectable", "Detectable"),
        Column("acc_change", "Accuracy change", with_interval=True),
        Column("mcnemar_p_holm", "p (McNemar)"),
        Column("num_items", "Items"),
        Column("num_seeds", "Seeds"),
        Column("verdict", "The second is"),
        Column("runs", "Runs"),
    ]


def _contrast_row(contrast: Contrast, size: int) -> list[Cell]:
    nll = contrast.nll
    return [
        Cell(RIVALS.get(contrast.first, contrast.first), contrast.first),
        text(contrast.second),
        estimate_cell(nll, signed=True),
        show_p(contrast.nll_adjusted_p),
        show(None if nll is None else nll.detectable(size)),
        estimate_cell(contrast.acc, signed=True),
        show_p(contrast.mcnemar_adjusted_p),
        show(None if nll is None else nll.num_items),
        show(None if nll is None else nll.num_seeds),
        text(contrast.verdict),
        keys_cell(contrast.keys, f"{len(contrast.keys)}"),
    ]


def show_p(p: float | None) -> Cell:
    if p is None:
        return Cell(UNKNOWN)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def costs_table(study: Study) -> Table:
    """What a step and the files take; each row is one measurement, of the run that is named."""
    rows = []
    for configuration in study.configurations:
        measured = [run for run in configuration.runs if "measure" in run.run.records]
        swept = (measured or configuration.runs)[0]
        cells = [show(swept.run.find(*METRICS[metric]), kind) for _, _, metric, kind in COSTS]
        step = ("measure", "observation", "train_speed", "step_seconds")
        spread = [swept.run.find(*step, part) for part in ("median", "p10", "p90")]
        cells.append(ranged(*spread) if measured else Cell(MISSING))
        rows.append([
            Cell(name_of(configuration), configuration.name), *cells,
            text(swept.hardware), keys_cell([swept.key], swept.key),
        ])  # fmt: skip
    return Table(
        name="costs",
        title="What it costs",
        columns=[
            Column("configuration", "Configuration"),
            *(Column(key, heading) for key, heading, _, _ in COSTS),
            Column("step_seconds", "Step, median [p10, p90] (s)", with_interval=True),
            Column("hardware", "Hardware"),
            Column("run", "Measured in"),
        ],
        rows=rows,
        notes=[
            "Memory: bytes of tensors at the peak of one step. Speed: one measurement, alone on "
            "the device; how much it differs from day to day is not in it."
        ],
    )


def forgetting_table(study: Study) -> Table:
    """On what was not trained: NLL after training over that of the base before."""
    rows = []
    for configuration in study.configurations:
        tasks = sorted({task for run in configuration.runs for task in run.run.benchmarks})
        for task in tasks:
            rise = rise_on(study, task, configuration, LEVEL)
            first = configuration.runs[0].run
            rows.append([
                Cell(name_of(configuration), configuration.name),
                text(task),
                *(score_cell(first, subject, task, "nll") for subject in ("original", "quantized")),
                Cell(rise) if isinstance(rise, str) else estimate_cell(rise, "share", signed=True),
                show(None if isinstance(rise, str) else rise.num_items),
                keys_cell(configuration.keys, f"{len(configuration.keys)}"),
            ])  # fmt: skip
    return Table(
        name="forgetting",
        title="What was not trained, before and after",
        columns=[
            Column("configuration", "Configuration"),
            Column("benchmark", "Benchmark"),
            Column("original_nll", "Original base, NLL", with_stderr=True),
            Column("before_nll", "Base before training, NLL", with_stderr=True),
            Column("rise", "Rise of the NLL by training", with_interval=True),
            Column("num_items", "Items"),
            Column("runs", "Runs"),
        ],
        rows=rows,
        notes=["Paired bootstrap over items and seeds, 95 % interval, not corrected."],
    )
