"""What one MLflow run shows, computed from the files of a run alone; no MLflow here.

The records stay the truth: a projection is a value, equal for equal files, so that it can be made
again at any time and compared with what a server holds. Names are chosen for MLflow's table and
its parallel coordinates: parameters are the flattened `params.yaml`, as texts that parse as
numbers; metrics are `quantity/subject` (`acc/adapter`) or `group/quantity` (`memory/...`), in base
units, and a benchmark's stand under its name (`piqa/acc/adapter`). Unknown is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from bitrank import paths, records
from bitrank.errors import UserError
from bitrank.identity import hash_file, hash_json
from bitrank.privacy import hide_home, publishable, report_files
from bitrank.runs import TASK, Run, read_run

MAX_VALUE = 500
"""Characters of a parameter or tag; older servers refuse more. The artifacts hold the whole."""
RECORD_STAGE = "record"

_PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")
_MEASURED = {
    "memory/train_peak_bytes": "result.train_memory.peak_bytes",
    **{f"memory/{part}_bytes": f"result.train_memory.{part}_bytes" for part in _PARTS},
    "memory/predicted_bytes": "result.train_memory.predicted.peak_bytes",
    "memory/evaluate_peak_bytes": "result.evaluate_memory.peak_bytes",
    "memory/merge_peak_bytes": "result.merge_memory.peak_bytes",
    "memory/process_peak_bytes": "observation.process_memory.train_peak_above_import_bytes",
    "memory/process_load_peak_bytes": "observation.process_memory.load_peak_above_import_bytes",
    "memory/cuda_peak_allocated_bytes": "observation.cuda.train.peak_allocated_bytes",
    "memory/cuda_peak_reserved_bytes": "observation.cuda.train.peak_reserved_bytes",
    "speed/train_tokens_per_second": "observation.train_speed.tokens_per_second",
    "speed/train_step_seconds": "observation.train_speed.step_seconds.median",
    **{
        f"speed/{name}_tokens_per_second": f"observation.inference.{name}.tokens_per_second"
        for name in ("prefill", "prefill_batched", "decode", "decode_batched")
    },
    "speed/mfu": "observation.mfu",
}
METRICS: dict[str, tuple[str, ...]] = {
    "acc/majority": ("prepare", "result", "majority_share"),
    "acc/control": ("control", "result", "acc"),
    "acc_stderr/control": ("control", "result", "acc_stderr"),
    "choice_nll/control": ("control", "result", "choice_nll"),
    **{name: ("measure", *where.split(".")) for name, where in _MEASURED.items()},
    "model/num_parameters": ("fetch", "result", "num_parameters"),
    "model/original_size_bytes": ("fetch", "result", "size_bytes"),
    "model/size_bytes": ("quantize", "result", "size_bytes"),
    "model/merged_size_bytes": ("merge", "result", "size_bytes"),
    "model/adapter_bytes": ("train", "result", "adapter_bytes"),
    "model/num_trainable_parameters": ("train", "result", "num_trainable_parameters"),
    "model/bits_per_quantized_weight": ("quantize", "result", "bits_per_quantized_weight"),
    "model/relative_error": ("quantize", "result", "relative_error"),
    "merge/mean_kl": ("merge", "result", "check", "mean_kl"),
    "merge/largest_logit_difference": ("merge", "result", "check", "largest_logit_difference"),
    "merge/argmax_agreement": ("merge", "result", "check", "argmax_agreement"),
}
"""Where each metric stands in the records: stage, part, keys."""

HASHES = {
    "hash.original": ("fetch", "result", "base_hash"),
    "hash.base": ("quantize", "result", "base_hash"),
    "hash.data": ("prepare", "result", "data_hash"),
    "hash.adapter": ("train", "result", "adapter_hash"),
    "hash.merged": ("merge", "result", "merged_hash"),
}


@dataclass(frozen=True, kw_only=True)
class Projection:
    key: str
    """What identifies the run: sha256 over `params.yaml` and the locked inputs and outputs."""
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, list[tuple[int, float]]]
    """(step, value) pairs."""
    tags: Mapping[str, str]
    artifacts: Mapping[str, bytes]
    """Contents by relative path."""
    seconds: float | None = None
    """How long it took, which MLflow then shows as its duration."""

    @cached_property
    def content(self) -> str:
        """sha256 of all that the run shows: two equal projections need one publication.

        `dvc.lock` is in the key; its file is another one while the `record` stage itself runs.
        """
        artifacts = {
            n: hashlib.sha256(body).hexdigest()
            for n, body in self.artifacts.items()
            if n != "dvc.lock"
        }
        shown = {**vars(self), "artifacts": artifacts}
        return hash_json(shown)


def project_run(results: Path, params: Path, lock: Path, report: Path) -> Projection:
    """Read the files of one run; `lock` and `report` may be missing.

    Raises:
        UserError: no record, no `params.yaml`, a file that cannot be read, or a `params.yaml` that
            is not the one that the locked stages ran with.
    """
    return project(read_run(results, {}), results, params, lock, report)


def project(run: Run, results: Path, params: Path, lock: Path, report: Path) -> Projection:
    """`project_run`, of a run that may have no record at all; `results` is where it was read."""
    values = read_yaml(params)
    locked = read_yaml(lock) if lock.is_file() else None
    if locked is not None:
        locked.get("stages", {}).pop(RECORD_STAGE, None)  # DVC writes it after that stage ran
        _check_params(values, locked, lock, params)
    lock_hash = None if locked is None else hash_json(locked)
    flat = flatten(values)
    params_hash = hash_file(params)
    identity = {"params.sha256": params_hash, "dvc.lock.sha256": lock_hash}
    return Projection(
        key=hash_json(identity),
        name=name_run(flat),
        params={key: shorten(hide_home(text)) for key, text in flat.items()},
        metrics=dict(metrics_of(run)),
        curves=dict(_curves(run)),
        tags={k: shorten(v) for k, v in _tags(run, flat, identity).items() if v is not None},
        artifacts=dict(_artifacts(run, results, params, lock, report)),
    )


def name_run(flat: Mapping[str, str]) -> str:
    """Precision, method (where not LoRA), rank and seed: `nf4-r8-s0`, `nf4-dora-r8-s0`."""
    method, rank = flat.get("adapter.method", "lora"), flat.get("adapter.rank")
    size = [f"r{rank or '?'}"] if rank or method == "lora" else []
    adapted = size if method == "lora" else [method, *size]
    return "-".join([flat.get("precision.name", "?"), *adapted, f"s{flat.get('seed', '?')}"])


def flatten(values: object, prefix: str = "") -> dict[str, str]:
    """Dotted keys to texts: `adapter.rank` to "8". A list of plain values stays one text."""
    if isinstance(values, Mapping):
        pairs = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and any(isinstance(v, Mapping | list) for v in values):
        pairs = [(str(index), value) for index, value in enumerate(values)]
    else:
        return {prefix: values if isinstance(values, str) else json.dumps(values)}
    flat: dict[str, str] = {}
    for key, value in pairs:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


class _Loader(yaml.CSafeLoader):
    """Tells numbers from texts as OmegaConf does, in a tenth of its time."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers  # no public way to them


def parse_yaml(text: str) -> Any:
    """1e-05 is a number and 2026-04-01 a text, as the stages read them.

    Raises:
        ValueError: the text is no YAML of a mapping or list.
    """
    try:
        values = yaml.load(text, _Loader)  # a safe one, whatever its name
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if values is None:
        return {}
    if not isinstance(values, Mapping | list):
        raise ValueError("neither a mapping nor a list")
    return values


def read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist; `bitrank params` composes it")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); `dvc repro` writes it anew") from None


def _check_params(values: Any, locked: Any, lock: Path, params: Path) -> None:
    """A stage that `dvc.yaml` no longer has may stay in the lock; it is not asked."""
    pipeline = lock.with_name("dvc.yaml")
    known = read_yaml(pipeline).get("stages", {}) if pipeline.is_file() else None
    for stage, entry in locked.get("stages", {}).items():
        if known is not None and stage.split("@")[0] not in known:
            continue
        for key, used in entry.get("params", {}).get(params.name, {}).items():
            current = values
            for part in key.split("."):
                current = current.get(part) if isinstance(current, Mapping) else None
            if current != used:
                raise UserError(
                    f"{params} is not what the records were made with (`{key}` differs from what "
                    f"{lock} holds for {stage}): `dvc repro` brings them together"
                )


def metrics_of(run: Run) -> Iterator[tuple[str, float]]:
    """(name, value) of every number that is known, sorted by name."""
    found = {name: run.find(*where) for name, where in METRICS.items()}
    for subject in paths.SUBJECTS:
        for task in (TASK, *run.benchmarks):
            prefix = "" if task == TASK else f"{task}/"
            scores = run.find(f"evaluate-{subject}", "result", "tasks", task) or {}
            for metric, value in scores.items():
                if not metric.startswith("num_"):
                    found[f"{prefix}{metric}/{subject}"] = value
    for way, of_way in (run.find("fidelity", "result", "ways") or {}).items():
        found[f"merge/mean_kl/{way}"] = of_way.get("mean_kl")
        found[f"merge/retained/{way}"] = of_way.get("retained", {}).get("nll", {}).get("share")
    for stage in run.records:
        found[f"seconds/{stage}"] = run.find(stage, "observation", "wall_seconds")
    for name, value in sorted(found.items()):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def _curves(run: Run) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    sources = {
        "train/loss": ("losses", "loss"),
        "train/learning_rate": ("losses", "learning_rate"),
        "train/gradient_norm": ("losses", "gradient_norm"),
        "validation/loss": ("validation", "loss"),
    }
    for name, (table, column) in sources.items():
        rows = run.find("train", "result", table) or []
        points = [(r["step"], float(r[column])) for r in rows if r.get(column) is not None]
        if points:
            yield name, points


def _tags(
    run: Run, flat: Mapping[str, str], identity: Mapping[str, str | None]
) -> dict[str, str | None]:
    commits = {run.find(s, "observation", "environment", "git_commit") for s in run.records}
    dirty = {run.find(s, "observation", "environment", "git_dirty") for s in run.records} - {None}
    timed = "measure" if "measure" in run.records else "train"
    machine = run.find(timed, "observation", "environment", "hardware") or {}
    cpu = machine.get("cpu") or {}
    gpus = machine.get("gpus")
    return {
        **identity,
        **{name: run.find(*where) for name, where in HASHES.items()},
        "bitrank.schema_version": str(records.SCHEMA_VERSION),
        "model": flat.get("model.name"),
        "model.provenance": flat.get("model.provenance"),
        "data": flat.get("data.name"),
        "precision": flat.get("precision.name"),
        "rank": flat.get("adapter.rank"),
        # Restored stages may come from several commits: all are named.
        "git.commit": " ".join(sorted(commits - {None})) or None,
        "git.dirty": json.dumps(any(dirty)) if dirty else None,
        "hardware.cpu": cpu.get("model") and f"{cpu['model']}, {cpu.get('cores')} cores",
        "hardware.gpu": None if gpus is None else ", ".join(g["name"] for g in gpus) or "none",
        "missing": ", ".join(run.missing) or None,
    }


def _artifacts(
    run: Run, results: Path, params: Path, lock: Path, report: Path
) -> Iterator[tuple[str, bytes]]:
    files = {"params.yaml": params, "dvc.lock": lock}
    files |= {f"records/{stage}.json": paths.record(stage, results) for stage in run.records}
    for name, file in files.items():
        if file.is_file():
            yield name, publishable(file)
    yield from report_files(report)


def shorten(text: str) -> str:
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
