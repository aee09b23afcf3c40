"""The report of one run, as Markdown and as one HTML file that needs nothing beside it.

The same records give the same bytes: no time of writing, no path, no name of a machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitrank import (
    artifacts,
    facts,
    figures,
    findings,
    forgetting_tables,
    pages,
    provenance,
    run_tables,
    serving_tables,
)
from bitrank.pages import Figure, Section
from bitrank.runs import CONTROL, TASK, Run, read_run
from bitrank.tables import Column, Table, format_bytes, show


def write_report(results: Path, item_folders: Mapping[str, Path], folder: Path) -> None:
    """Write `report.md`, `report.html`, `figures/` and `tables/` into `folder`.

    `item_folders` holds the item logs of each subject.

    Raises:
        UserError: no record in `results`, one that cannot be read, records of different runs, or
            a wrong item log.
    """
    run = read_run(results, item_folders)
    provenance.check_chain(run)
    sections = build_sections(run)
    with artifacts.whole_folder(folder) as partial:
        pages.write_files(partial, pages.files_of(sections))
        pages.write_files(partial, fill_templates(run, sections))


def fill_templates(run: Run, sections: Sequence[Section]) -> dict[str, str]:
    """The pages by file name."""
    return pages.fill({
        "method": findings.describe_method(run),
        "brief": findings.write_brief(run),
        "headline": findings.write_headline(run),
        "points": findings.write_points(run),
        "warnings": findings.write_warnings(run),
        "sections": sections,
    })  # fmt: skip


def build_sections(run: Run) -> list[Section]:
    def table(name: str, title: str, *known: tuple[facts.Fact, ...]) -> Table:
        return facts.facts_table(run, name, title, tuple(fact for part in known for fact in part))

    on_cuda = run.find("measure", "observation", "cuda") is not None
    process = (facts.PROCESS_MEMORY, facts.CUDA_MEMORY if on_cuda else ())
    return [
        Section(key="scores", title="Scores", figures=_scores(run),
                tables=[run_tables.scores_table(run), run_tables.differences_table(run)]),
        _serving(run),
        _forgetting(run),
        Section(key="memory", title="Memory", figures=_memory(run),
                tables=[run_tables.memory_table(run),
                        table("phase_memory", "Memory by phase, measured and predicted",
                              facts.PHASE_MEMORY),
                        table("process_memory", "Memory of the process", *process)]),
        Section(key="speed", title="Speed",
                text=[f"Measured on {findings.describe_hardware(run, 'measure')}."],
                tables=[table("speed", "Training and inference", facts.SPEED,
                              facts.inference_facts(run))]),
        Section(key="asked", title="What was asked",
                tables=[table("asked", "Configuration in brief", facts.ASKED)]),
        Section(key="treatment", title="Proof of treatment",
                text=["Read from the live models in use, not from the configuration."],
                tables=[table("adapter", "What was trained", facts.ADAPTER,
                              facts.OTHER_METHODS if run.method != "lora" else ()),
                        provenance.treatment_table(run)]),
        Section(key="training", title="Training", figures=_losses(run), data=_loss_tables(run),
                tables=[table("training", "The training run", facts.TRAINING)]),
        Section(key="quantization", title="Quantization", figures=_layer_errors(run),
                data=[_layer_table(run)],
                tables=[table("quantization", "The quantized base", facts.QUANTIZATION)]),
        Section(key="merge", title="Merge",
                text=[findings.describe_merge(run)],
                tables=[] if run.find("merge", "result", "why_not") else
                       [table("merge", "Merge check", facts.MERGE)]),
        Section(key="audit", title="Data and label audit",
                text=["Example rows, token by token, stand in data/audit/label_audit.html."],
                tables=[table("audit", "Rows and labels", facts.AUDIT)]),
        Section(key="identities", title="Identities", tables=[provenance.identities_table(run)]),
        Section(key="environment", title="Versions, hardware, time",
                tables=[provenance.stages_table(run), provenance.environment_table(run)]),
        Section(key="records", title="Every recorded value", folded=True,
                tables=[provenance.records_table(run)]),
    ]  # fmt: skip


def _serving(run: Run) -> Section:
    layers = run.find("fidelity", "result", "layers") or []
    drawn = _by_block(layers, "update_to_step", "update / quantization step")
    alt = "Size of each layer's update over its mean quantization step"
    rows = serving_tables.layer_rows(run)
    keys = list(rows[0]) if rows else serving_tables.LAYER_KEYS
    return Section(
        key="serving",
        title="What is served",
        figures=[Figure("updates", alt, drawn)] if drawn else [],
        data=[_plain_table("updates", "Update of every layer", rows, keys)],
        tables=[*(serving_tables.all_tables(run) if "fidelity" in run.records else []),
                facts.facts_table(run, "update", "The update beside the quantization step",
                                  facts.UPDATE)],
    )  # fmt: skip


def _forgetting(run: Run) -> Section:
    asked = bool(run.benchmarks)
    made = (forgetting_tables.forgetting_table, forgetting_tables.benchmarks_table)
    tables = [make(run) for make in made] if asked else []
    return Section(
        key="forgetting",
        title="Forgetting",
        text=[] if asked else ["No benchmark was evaluated beside the trained task."],
        tables=tables,
    )


def _scores(run: Run) -> list[Figure]:
    bars = []
    for subject in run_tables.LABELS:
        value, stderr = (run.score(subject, TASK, key) for key in ("acc", "acc_stderr"))
        if value is not None:
            short = run_tables.label_of(run, subject).removesuffix(" + logistic regression")
            bars.append(figures.Bar(short, value, stderr, subject == CONTROL))
    share = run.find("prepare", "result", "majority_share")
    if bars and share is not None:
        bars.append(figures.Bar(run_tables.MAJORITY, share, None, True))
    if not bars:
        return []
    alt = "Accuracy: " + ", ".join(f"{bar.label} {bar.value:.3f}" for bar in bars)
    return [Figure("scores", alt, figures.draw_scores(bars, "accuracy ± standard error"))]


def _memory(run: Run) -> list[Figure]:
    where = ("measure", "result", "train_memory")
    held = {part: run.find(*where, f"{part}_bytes") for part in run_tables.MEMORY_PARTS}
    parts = [
        figures.Part(name, size / 2**20, format_bytes(size))
        for name, size in held.items()
        if size is not None
    ]
    if not parts:
        return []
    alt = "Memory of one training step: " + ", ".join(f"{p.label} {p.shown}" for p in parts)
    return [Figure("memory", alt, figures.draw_parts(parts, "MiB at the peak of a step"))]


def _losses(run: Run) -> list[Figure]:
    curves = [
        [(point["step"], point["loss"]) for point in run.find("train", "result", key) or []]
        for key in ("losses", "validation")
    ]
    if not any(curves):
        return []
    alt = f"Loss over {len(curves[0])} steps of training, with the validation loss"
    return [Figure("loss", alt, figures.draw_losses(curves[0], curves[1]))]


def _layer_errors(run: Run) -> list[Figure]:
    layers = run.find("quantize", "result", "layers") or []
    drawn = _by_block(layers, "relative_error", "relative error")
    alt = "Relative quantization error of each layer"
    return [Figure("layer_errors", alt, drawn)] if drawn else []


def _by_block(layers: Sequence[Mapping[str, Any]], key: str, label: str) -> figures.Drawing | None:
    """One value of each layer over its block, a series a kind of layer; null where all are 0."""
    series: dict[str, list[tuple[float, float]]] = {}
    for index, layer in enumerate(layers):
        block = re.search(r"\.(\d+)\.", layer["name"])
        place = int(block.group(1)) if block else index
        if layer[key] is not None:
            kind = layer["name"].rsplit(".", 1)[-1]
            series.setdefault(kind, []).append((place, layer[key]))
    if not any(value for points in series.values() for _, value in points):
        return None
    return figures.draw_layers({name: sorted(series[name]) for name in sorted(series)}, label)


def _loss_tables(run: Run) -> list[Table]:
    """One for each curve: `dvc plots` draws these files."""
    training = run.find("train", "result", "losses") or []
    validation = run.find("train", "result", "validation") or []
    keys = ("step", "loss")
    return [
        _plain_table("losses", "Loss of every step", training,
                     (*keys, "learning_rate", "gradient_norm")),
        _plain_table("validation_losses", "Loss on the validation rows", validation, keys),
    ]  # fmt: skip


def _layer_table(run: Run) -> Table:
    keys = ("name", "shape", "relative_error", "largest_error")
    layers = run.find("quantize", "result", "layers") or []
    return _plain_table("layers", "Error of every layer", layers, keys)


def _plain_table(
    name: str, title: str, entries: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> Table:
    rows = [[show(entry.get(key)) for key in keys] for entry in entries]
    return Table(name=name, title=title, columns=[Column(key, key) for key in keys], rows=rows)
