"""What this project measured, as far as a prediction can be held against it.

Read from the records of `measure` (of the last run and of every kept sweep), each with the
configuration that DVC's lock file beside it names, and from the records of the memory benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bitrank import accelerators, hardware, paths, records, schema
from bitrank.accelerators import Accelerator
from bitrank.adapter_config import AdapterConfig
from bitrank.config import ModelConfig, PrecisionConfig
from bitrank.errors import UserError
from bitrank.tuning import TrainConfig

CURVES = Path("benchmarks") / "results"
LOCK = "dvc.lock"


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """The sections of a configuration that memory depends on."""

    model: ModelConfig
    precision: PrecisionConfig
    adapter: AdapterConfig
    train: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Measured:
    where: str
    record: records.Record
    treatment: Treatment


@dataclass(frozen=True, kw_only=True)
class Skipped:
    where: str
    reason: str


def read_measured(project: Path = Path()) -> Iterator[Measured | Skipped]:
    """Every record of `measure` in the project, the last run's first."""
    places = [(project / paths.RESULTS, project / LOCK)]
    sweeps = project / paths.SWEEPS
    for results in sorted(sweeps.glob("*/*/results")):
        places.append((results, results.parent / LOCK))
    for results, lock in places:
        file = paths.record("measure", results)
        if not file.is_file():
            continue
        where = str(file.relative_to(project))
        try:
            yield Measured(where=where, record=records.read_record(file),
                           treatment=_read_lock(lock))  # fmt: skip
        except UserError as error:
            yield Skipped(where=where, reason=" ".join(str(error).split()))


def read_curves(project: Path = Path()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where, and body, of the records of `benchmarks/memory_curve.py`."""
    for file in sorted((project / CURVES).glob("memory_curve-*.json")):
        yield str(file.relative_to(project)), json.loads(file.read_text(encoding="utf-8"))


def find_base(base_hash: str, project: Path = Path()) -> ModelConfig | None:
    """The model of a record of `fetch` with this hash."""
    for results in [project / paths.RESULTS, *(project / paths.SWEEPS).glob("*/*/results")]:
        file = paths.record("fetch", results)
        if file.is_file() and records.read_record(file).result.get("base_hash") == base_hash:
            lock = project / LOCK if results == project / paths.RESULTS else results.parent / LOCK
            return _read_lock(lock).model
    return None


def _read_lock(lock: Path) -> Treatment:
    """Raises UserError: no lock, or its configuration is of another version."""
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        asked = {**stages["fetch"]["params"]["params.yaml"],
                 **stages["measure"]["params"]["params.yaml"]}  # fmt: skip
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise UserError(f"{lock} does not tell its configuration") from None
    faults: list[str] = []
    sections = ("model", "precision", "adapter", "train")
    values = {name: asked[name] for name in sections if name in asked}
    found = schema.build(Treatment, values, "", faults)
    if found is None or faults:
        raise UserError(f"the configuration in {lock} is of another version: {faults[0]}")
    return found


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What records of one device tell of its ceiling, and of the share that was reached."""

    ceiling_flops_per_second: float
    mfu: float
    lowest: float
    highest: float
    count: int


def find_reached(
    device: Accelerator, precision: PrecisionConfig, project: Path = Path()
) -> Reached | None:
    """Of the records of this device, in this precision where there are any; None without one."""
    own = [m for m in read_measured(project) if isinstance(m, Measured) and _is_of(m, device)]
    alike = [m for m in own if m.treatment.precision.quant_type == precision.quant_type] or own
    told = [m.record.observation for m in alike if m.record.observation.get("mfu")]
    if not told:
        return None
    shares = [one["mfu"] for one in told]
    return Reached(
        ceiling_flops_per_second=median(one["ceiling_flops_per_second"] for one in told),
        mfu=median(shares),
        lowest=min(shares),
        highest=max(shares),
        count=len(shares),
    )


def _is_of(measured: Measured, device: Accelerator) -> bool:
    told = measured.record.observation.get("environment", {}).get("hardware", {})
    gpus = [gpu["name"] for gpu in told.get("gpus", [])]
    ran_on = measured.record.treatment.get("device")
    if device.kind == "gpu":
        known = accelerators.read_gpus()
        listed = {found.name for name in gpus if (found := accelerators.recognize(name, known))}
        same = device.name in listed or any(name in device.name for name in gpus)
        return ran_on == "cuda" and same
    here = hardware.fingerprint()["cpu"]
    cpu = told.get("cpu", {})
    same = all(cpu.get(name) == here[name] for name in ("model", "cores", "features"))
    return ran_on == "cpu" and same
