"""Results that others published, as rows beside a sweep: the JSON of PEFT's method comparison.

They come from another task, model and machine, mostly with one seed. So they stand in a table of
their own, in the order of their names, and neither a ranking nor a claim ever sees them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bitrank.errors import ConfigError, UserError
from bitrank.tables import NOT_APPLICABLE, Cell, Column, Table, show, text

SUCCESS = "success"
REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "run_info.created_at": str,
    "run_info.experiment_name": str,
    "run_info.train_config.model_id": str,
    "run_info.train_config.dtype": str,
    "run_info.train_config.seed": int,
    "train_info.status": str,
    "train_info.metrics": list,
    "train_info.train_time": (int, float),
    "train_info.num_trainable_params": int,
    "meta_info.dataset_info": dict,
    "meta_info.package_info": dict,
    "meta_info.system_info": dict,
}
"""Dotted keys that every file of the format has, old or new, with their types."""
NOTES = (
    "Foreign: read from files of PEFT's method comparison, and computed by others. Another task, "
    "another model and another machine: no row is ranked with the sweep's own, and no claim is "
    "judged by them.",
    "Peak memory is what torch's allocator had reserved on their GPU at most; speed is the median "
    "of their intervals. Neither is defined as the sweep's.",
)


class ForeignError(ConfigError):
    """All faults of the files at once."""

    subject = "the foreign results have"


@dataclass(frozen=True, kw_only=True)
class ForeignRun:
    name: str
    method: str
    rank: int | None
    """Null for a method without one."""
    status: str
    model: str
    dtype: str
    seed: int
    tasks: str
    hardware: str | None
    packages: str
    created: str
    accuracy: float | None
    """Share of the test items; null where the run did not end."""
    forgetting: float | None
    """Nats a token that another text costs more than before; older files do not have it."""
    peak_bytes: int | None
    adapter_bytes: int | None
    num_trainable: int
    train_seconds: float
    tokens_per_second: float | None


def read_foreign(given: Sequence[Path]) -> list[ForeignRun]:
    """The runs of these files, and of all `*.json` in these folders.

    Raises:
        UserError: a path that does not exist, or a folder without such a file.
        ForeignError: with all faults of all files.
    """
    runs, faults = [], []
    for file in dict.fromkeys(file for path in given for file in _files(path)):
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            faults.append(f"{file}: is not JSON: {error}")
            continue
        wrong = list(_check(body))
        faults.extend(f"{file}: {fault}" for fault in wrong)
        if not wrong:
            runs.append(_read(body))
    if faults:
        raise ForeignError(faults)
    return sorted(runs, key=lambda run: (run.name, run.created))


def foreign_table(runs: Sequence[ForeignRun]) -> Table:
    return Table(
        name="foreign",
        title="Published by others, not comparable",
        columns=[
            Column("run", "Foreign run"), Column("method", "Method"), Column("rank", "Rank"),
            Column("status", "Status"), Column("model", "Model"), Column("dtype", "Type"),
            Column("tasks", "Task"), Column("hardware", "Hardware"), Column("seed", "Seed"),
            Column("test_accuracy", "Test accuracy"), Column("forgetting", "Forgetting"),
            Column("peak_bytes", "Peak reserved"), Column("adapter_bytes", "On disk"),
            Column("num_trainable", "Trained parameters"), Column("train_seconds", "Training"),
            Column("tokens_per_second", "Speed"), Column("packages", "Versions"),
            Column("created", "Date"),
        ],
        rows=[_row(run) for run in runs],
        notes=NOTES,
    )  # fmt: skip


def _row(run: ForeignRun) -> list[Cell]:
    return [
        text(f"foreign: {run.name}"), text(run.method),
        Cell(NOT_APPLICABLE) if run.rank is None else show(run.rank),
        text(run.status), text(run.model), text(run.dtype), text(run.tasks), show(run.hardware),
        show(run.seed), show(run.accuracy, "share"), show(run.forgetting),
        show(run.peak_bytes, "bytes"), show(run.adapter_bytes, "bytes"), show(run.num_trainable),
        show(run.train_seconds, "seconds"), show(run.tokens_per_second, "rate"),
        text(run.packages), text(run.created[:10]),
    ]  # fmt: skip


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: name files of results, or a folder of them")
    found = sorted(path.glob("*.json"))
    if not found:
        raise UserError(f"{path} holds no *.json")
    return found


def _check(body: Any) -> Iterator[str]:
    """What keeps a file from being one of the format."""
    for key, kind in REQUIRED.items():
        value = _look_up(body, key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(k.__name__ for k in kinds)
            was = "is missing" if value is None else f"is {value!r:.60}"
            yield f"`{key}` {was}; PEFT's method comparison writes a {wanted} there"
    metrics = _look_up(body, "train_info.metrics")
    if not isinstance(metrics, list) or not all(isinstance(entry, dict) for entry in metrics):
        return
    tested = [entry["test accuracy"] for entry in metrics if "test accuracy" in entry]
    if _look_up(body, "train_info.status") == SUCCESS and not tested:
        yield '`train_info.metrics` has no entry with "test accuracy", though the run succeeded'
    for value in tested:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            yield f'`train_info.metrics`: "test accuracy" is {value!r}, which is no share'


def _read(body: Mapping[str, Any]) -> ForeignRun:
    info, trained = body["run_info"], body["train_info"]
    config, settings = info["train_config"], info.get("peft_config")
    settings = settings if isinstance(settings, Mapping) else {}
    last: Mapping[str, Any] = next((e for e in trained["metrics"] if "test accuracy" in e), {})
    speeds = [e["tokens / sec"] for e in trained["metrics"] if e.get("tokens / sec")]
    packages = body["meta_info"]["package_info"]
    system = body["meta_info"]["system_info"]
    return ForeignRun(
        name=info["experiment_name"],
        method=settings.get("peft_type") or "full fine-tuning",
        rank=settings.get("r"),
        status=trained["status"],
        model=config["model_id"],
        dtype=config["dtype"],
        seed=config["seed"],
        tasks=", ".join(sorted(body["meta_info"]["dataset_info"])),
        hardware=system.get("accelerator") or system.get("gpu"),  # in older files
        packages=", ".join(
            f"{name} {packages[f'{name}-version']}"
            for name in ("peft", "torch", "transformers")
            if packages.get(f"{name}-version")
        ),
        created=info["created_at"],
        accuracy=last.get("test accuracy"),
        forgetting=last.get("forgetting"),
        peak_bytes=_either(trained, "accelerator_memory_max", "cuda_memory_max"),
        adapter_bytes=trained.get("file_size") or None,
        num_trainable=trained["num_trainable_params"],
        train_seconds=float(trained["train_time"]),
        tokens_per_second=median(speeds) if speeds else None,
    )


def _either(found: Mapping[str, Any], name: str, older: str) -> Any:
    """Zero stands for what was not measured."""
    return found.get(name, found.get(older)) or None


def _look_up(body: Any, key: str) -> Any:
    for part in key.split("."):
        body = body.get(part) if isinstance(body, Mapping) else None
    return body
