"""What is served, in tables and in words: every way against what was trained, and all of them as a
matrix of the base's precision and of how the adapter is served.

A way that loses more than noise is warned of. "What was trained" is the adapter beside the base
that training saw; a share of the gain is told only where there is a gain beyond noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bitrank.provenance import live_precision
from bitrank.run_tables import METRICS, compare, label_of, verdict
from bitrank.runs import TASK, Run
from bitrank.statistics import Difference
from bitrank.tables import (
    NOT_APPLICABLE,
    UNKNOWN,
    Cell,
    Column,
    Table,
    measured,
    percent,
    show,
    text,
)

LABELS = {
    "adapter_on_original": "adapter beside W",
    "merged_original": "W + update",
    "merged_dequantized": "dq(W4) + update",
    "merged_requantized": "Q(dq(W4) + update)",
    "merged_then_quantized": "Q(W + update)",
}
"""Of `serving`'s ways."""
SYMBOLS = (
    "W: the original weights. W4: their 4-bit codes, on which was trained; dq: what codes stand "
    "for; Q: the quantizer. Q(dq(W4) + update) is what merging back into a 4-bit base makes."
)
SERVED = ("untrained", "adapter beside it", "merged", "merged, then 4 bits")
MATRIX = {
    "original": ("untrained_original", "adapter_on_original", "merged_original",
                 "merged_then_quantized"),
    "quantized": ("untrained_quantized", "adapter", "merged_dequantized", "merged_requantized"),
}  # fmt: skip
"""What stands under `SERVED`, for each base; both rows are one where the base is not quantized."""
SHOWN = ("nll", "nll_per_token", "choice_nll", "acc")


def label_of_way(run: Run, way: str) -> str:
    types = (live_precision(run, "fidelity") or {}).get("quant_types") or []
    return LABELS[way].replace("W4", "W8") if types == ["int8"] else LABELS[way]


def ways_of(run: Run) -> dict[str, Mapping[str, Any]]:
    """The ways that were served; those that do not exist in this run are left out."""
    found = run.find("fidelity", "result", "ways") or {}
    return {way: found[way] for way in LABELS if way in found and not found[way].get("reason")}


def all_tables(run: Run) -> list[Table]:
    return [matrix_table(run), fidelity_table(run)]


def fidelity_table(run: Run) -> Table:
    """Every way against what was trained, on the same items."""
    rows = [
        [
            text(label_of_way(run, way)),
            measured(found["mean_kl"], found["mean_kl_stderr"]),
            *_change_cells(found["changes"]),
            *(_kept_cell(found["retained"][metric]) for metric in ("nll", "acc")),
            _share_cell(found["codes_changed_share"]),
            _share_cell(found["update_left_share"]),
        ]
        for way, found in ways_of(run).items()
    ]
    return Table(
        name="fidelity",
        title=f"Each way to serve, against the {label_of(run, 'adapter')}",
        columns=[
            Column("way", "Served"),
            Column("mean_kl", "KL (nats)", with_stderr=True),
            Column("nll_change", "NLL", with_stderr=True),
            Column("acc_change", "Accuracy", with_stderr=True),
            Column("verdict", "Verdict on NLL"),
            Column("nll_retained", "Gain kept, NLL", with_stderr=True),
            Column("acc_retained", "Gain kept, accuracy", with_stderr=True),
            Column("codes_changed_share", "Codes changed"),
            Column("update_left_share", "Update left"),
        ],
        rows=rows,
        notes=[*_items_note(run), SYMBOLS, _NOTE, *_reasons(run)],
    )


_NOTE = (
    "KL from what was trained, after each prompt. NLL and accuracy: mean change ± standard error, "
    "paired. Gain kept: of the gain over the untrained base. Codes changed: share of the 4-bit "
    "codes that the update changes. Update left: its projection on what quantizing leaves of it."
)


def matrix_table(run: Run) -> Table:
    """Scores by the base's precision and by how the adapter is served."""
    scores = run.find("fidelity", "result", "scores") or {}
    tasks = sorted({task for of in scores.values() for task in of}, key=lambda t: (t != TASK, t))
    rows = [
        [text("trained task" if task == TASK else task), Cell(METRICS[metric], metric),
         text(base), *(_score_cell(scores, name, task, metric) for name in names)]
        for task in tasks
        for metric in _metrics_of(scores, task)
        for base, names in _bases(run).items()
    ]  # fmt: skip
    heads = [Column(h.replace(" ", "_").replace(",", ""), h.capitalize(), with_stderr=True)
             for h in SERVED]  # fmt: skip
    return Table(
        name="served",
        title="What is served: precision of the base × how the adapter is served",
        columns=[*(Column(k, k.capitalize()) for k in ("task", "metric", "base")), *heads],
        rows=rows,
        notes=[*_items_note(run), "Mean ± standard error over the same items.",
               *([] if _is_full_matrix(run) else [_PARTIAL])],
    )  # fmt: skip


_PARTIAL = "evaluate=full fills the matrix: every way, on all items and on the benchmarks."


def _is_full_matrix(run: Run) -> bool:
    asked = run.find("fidelity", "treatment", "ways") or []
    items = run.find("fidelity", "result", "num_items")
    return set(asked) == set(LABELS) and items == run.score("adapter", TASK, "num_items")


def _bases(run: Run) -> dict[str, tuple[str, ...]]:
    """The matrix's rows by name; where nothing is quantized the two bases are one."""
    live = live_precision(run, "fidelity") or {}
    if live.get("quant_types"):
        return {label_of(run, base): MATRIX[base] for base in MATRIX}
    first, second = MATRIX["quantized"][:2], MATRIX["original"][2:]
    return {label_of(run, "quantized"): (*first, *second)}


def _metrics_of(scores: Mapping[str, Any], task: str) -> list[str]:
    """NLL per token only where tokens differ in number from text to text."""
    found = {metric for of in scores.values() for metric in of.get(task, {})}
    hidden = "nll_per_token" if task == TASK else "nll"
    return [metric for metric in SHOWN if metric in found and metric != hidden]


def _score_cell(scores: Mapping[str, Any], name: str, task: str, metric: str) -> Cell:
    found = scores.get(name, {}).get(task, {})
    if metric not in found:
        return Cell(NOT_APPLICABLE)
    return measured(found[metric], found.get(f"{metric}_stderr"))


def _items_note(run: Run) -> Iterator[str]:
    count = run.find("fidelity", "result", "num_items")
    whole = run.score("adapter", TASK, "num_items")
    if count is not None:
        part = "" if whole is None or count == whole else f", the first of {whole:,}"
        yield f"{count:,} test items{part}."


def _reasons(run: Run) -> Iterator[str]:
    for way, found in (run.find("fidelity", "result", "ways") or {}).items():
        if found.get("reason"):
            yield f"No {label_of_way(run, way)}: {found['reason']}."


def _change_cells(changes: Mapping[str, Any]) -> Iterator[Cell]:
    """Of NLL and accuracy, and the verdict on the first."""
    for metric in ("nll", "acc"):
        change = changes.get(metric)
        yield (Cell(NOT_APPLICABLE) if change is None
               else measured(change["mean"], change["stderr"], signed=True))  # fmt: skip
    yield text(_verdict(changes.get("nll")))


def _verdict(change: Mapping[str, Any] | None) -> str:
    return UNKNOWN if change is None else verdict(Difference(**change), "nll")


def _kept_cell(retained: Mapping[str, Any]) -> Cell:
    if retained["share"] is None:
        return Cell(f"undefined: {retained['reason']}")
    return percent(retained["share"], retained["stderr"])


def _share_cell(share: float | None) -> Cell:
    return Cell(NOT_APPLICABLE) if share is None else show(share, "share")


def write_kept(run: Run) -> Iterator[str]:
    """One sentence: what each way to serve keeps of the gain in NLL."""
    told = [
        f"{label_of_way(run, way)} {_kept_cell(found['retained']['nll']).text}"
        for way, found in ways_of(run).items()
        if found["retained"]["nll"]["share"] is not None
    ]
    if told:
        yield f"Of the gain in NLL, what is served keeps: {', '.join(told)}."


def warn_of_losses(run: Run) -> list[str]:
    """The ways that lose more than noise, this run's own merged model first."""
    told = []
    own = compare(run, TASK, "nll", "adapter", "merged")
    if own is not None and verdict(own, "nll") == "worse":
        shown = measured(own.mean, own.stderr, signed=True).text
        told.append(f"The merged model loses more than noise: NLL {shown}.")
    for way, found in ways_of(run).items():
        change = found["changes"].get("nll")
        if change is not None and _verdict(change) == "worse":
            shown = measured(change["mean"], change["stderr"], signed=True).text
            kept = _kept_cell(found["retained"]["nll"]).text
            told.append(
                f"{label_of_way(run, way)} loses more than noise: NLL {shown} against what was "
                f"trained, gain kept {kept}."
            )
    return told


def layer_rows(run: Run) -> Sequence[Mapping[str, Any]]:
    """One flat entry a layer, for a CSV: the update beside the step, and what each way left."""
    return [
        {
            **{key: layer.get(key) for key in LAYER_KEYS},
            **{
                f"{key}/{way}": value
                for way, found in layer.get("ways", {}).items()
                for key, value in found.items()
            },
        }
        for layer in run.find("fidelity", "result", "layers") or []
    ]


LAYER_KEYS = ("name", "update_rms", "mean_step", "error_rms", "update_to_step")
