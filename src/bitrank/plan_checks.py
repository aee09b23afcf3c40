"""How far predictions are from what was measured here, and from what others published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bitrank import composition, config, measured, multiplied, planning
from bitrank.architectures import find_architecture, read_yaml
from bitrank.config import ModelConfig
from bitrank.errors import UserError
from bitrank.estimate import BatchShape
from bitrank.measured import Measured, Skipped, Treatment
from bitrank.multiplied import StepMemory, Targets

PUBLISHED = Path("conf") / "plan" / "published.yaml"
PHASES = ("load", "train", "evaluate", "merge")
MEASURED_HERE = (
    "predicted anew from config.json, treatment and shape of the batch, as `bitrank plan` does; "
    "error = predicted / measured - 1, of tensors at the peak"
)
PUBLISHED_ELSEWHERE = (
    "none of these was measured here; tensors are what is traced, needed adds what is assumed of a "
    "GPU; off = needed / published - 1; what their run had and ours would not stands beside it"
)


@dataclass(frozen=True, kw_only=True)
class Check:
    where: str
    what: str
    measured_bytes: int
    predicted_bytes: int

    @property
    def error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1


@dataclass(frozen=True, kw_only=True)
class Published:
    name: str
    source: str
    differs: str
    published_bytes: int
    tensor_bytes: int
    needed_bytes: int

    @property
    def off(self) -> float:
        return self.needed_bytes / self.published_bytes - 1


Job = Callable[[], list[Check | Skipped]]
Phases = dict[str, dict[str, int]]


class Predictor:
    """What several records share is traced once."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self._steps: dict[str, StepMemory] = {}
        self._others: dict[str, Phases] = {}

    def train(self, treatment: Treatment, shape: BatchShape) -> int:
        """Bytes of tensors at the peak of a step."""
        last = shape.columns - shape.first_target
        # All that a step's memory knows of the batch is whether it is one of several.
        sizes = (1, 2) if shape.accumulated else (1, 1)
        train = replace(treatment.train, micro_batch_size=sizes[0], global_batch_size=sizes[1])
        key = repr((treatment.model, treatment.precision, treatment.adapter, train, last))
        if key not in self._steps:
            self._steps[key] = multiplied.predict_steps(
                self._settings(treatment), treatment.precision, treatment.adapter, train,
                Targets(last=last),
            )  # fmt: skip
        return self._steps[key].predict(shape.rows, shape.columns)["peak_bytes"]

    def others(self, treatment: Treatment, shape: BatchShape) -> dict[str, int]:
        """The same of the other phases."""
        key = repr((treatment, shape))
        if key not in self._others:
            self._others[key] = multiplied.predict_others(
                self._settings(treatment), treatment.precision, treatment.adapter,
                treatment.train, shape,
            )  # fmt: skip
        return {phase: sum(parts.values()) for phase, parts in self._others[key].items()}

    def _settings(self, treatment: Treatment) -> Mapping[str, Any]:
        return find_architecture(treatment.model, project=self.project).settings


def list_jobs(project: Path = Path()) -> list[tuple[str, Job]]:
    """Each measured record with what compares it."""
    predictor = Predictor(project)
    jobs: list[tuple[str, Job]] = [
        (point.where, partial(_check_record, point, predictor))
        for point in measured.read_measured(project)
    ]
    for where, body in measured.read_curves(project):
        jobs += [(where, partial(_check_cell, where, body, cell, predictor))
                 for cell in body["cells"]]  # fmt: skip
    return jobs


def _check_record(point: Measured | Skipped, predictor: Predictor) -> list[Check | Skipped]:
    if isinstance(point, Skipped):
        return [point]
    result = point.record.result
    batch = result.get("prediction", {}).get("batch")
    if batch is None:
        return [Skipped(where=point.where, reason="its record does not tell the batch's shape")]
    try:
        shape = BatchShape(**batch)
        predicted = predictor.others(point.treatment, shape)
        predicted["train"] = predictor.train(point.treatment, shape)
    except UserError as error:
        return [Skipped(where=point.where, reason=str(error))]
    checks: list[Check | Skipped] = []
    for phase in PHASES:
        peak = result.get(f"{phase}_memory", {}).get("peak_bytes")
        if peak is not None and phase in predicted:
            checks.append(Check(where=point.where, what=phase, measured_bytes=peak,
                                predicted_bytes=predicted[phase]))  # fmt: skip
    return checks


def _check_cell(
    where: str, body: Mapping[str, Any], cell: Mapping[str, Any], predictor: Predictor
) -> list[Check | Skipped]:
    model = measured.find_base(body["base_hash"], predictor.project)
    if model is None:
        return [Skipped(where=where, reason="no record of `fetch` tells of its base")]
    columns = int(body["columns"])
    rows = int(cell["tokens"]) // columns
    again = "true" if cell["checkpointing"] else "false"
    run = _compose([f"precision={cell['precision']}", f"adapter.rank={body['rank']}",
                    f"train.gradient_checkpointing={again}"], predictor.project)  # fmt: skip
    shape = BatchShape(rows=rows, columns=columns, accumulated=False,
                       first_target=columns - int(body["supervised_columns"]))  # fmt: skip
    what = f"{cell['precision']}, {cell['tokens']} tokens" + ", ckpt" * cell["checkpointing"]
    return [Check(where=where, what=what, measured_bytes=cell["peak_bytes"],
                  predicted_bytes=predictor.train(_treat(run, model), shape))]  # fmt: skip


def _treat(run: config.RunConfig, model: ModelConfig) -> Treatment:
    return Treatment(model=model, precision=run.precision, adapter=run.adapter, train=run.train)


def _compose(overrides: list[str], project: Path = Path()) -> config.RunConfig:
    text = composition.compose_text(overrides, project / composition.CONF)
    return config.parse(OmegaConf.to_container(OmegaConf.create(text), resolve=True))


def compare_published(project: Path = Path()) -> Iterator[Published]:
    """What we would have predicted for runs of others."""
    for entry in read_yaml(project / PUBLISHED):
        run = _compose([*entry["overrides"], "runtime.device=cuda",
                        "train.global_batch_size=1"], project)  # fmt: skip
        given = entry.get("config")
        settings = given or find_architecture(run.model, project=project).settings
        step = multiplied.predict_steps(settings, run.precision, run.adapter, run.train,
                                        Targets(last=None))  # fmt: skip
        parts = step.predict(run.train.micro_batch_size, run.data.max_sequence_tokens)
        yield Published(
            name=entry["name"],
            source=entry["source"],
            differs=entry["differs"],
            published_bytes=int(float(entry["gigabytes"]) * 1e9),
            tensor_bytes=parts["peak_bytes"],
            needed_bytes=parts["peak_bytes"] + planning.assume_on_top(parts, "gpu"),
        )
