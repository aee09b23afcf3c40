"""Publishing: one finished run whatever happened before, and never a word too much."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitrank import paths, records, tracking
from bitrank.composition import compose_text
from bitrank.errors import UserError
from bitrank.projection import METRICS, Projection, project_run

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "fakes"
SUBJECTS = {"original": 0.27, "quantized": 0.25, "adapter": 0.66, "merged": 0.65}


def fake_records(acc: float = 0.66, peak: int = 900_000_000, speed: float = 170.0) -> Iterator[Any]:
    """(stage, result, observation) of every stage, in the shape that the stages write."""
    yield "fetch", {"base_hash": "0" * 64, "num_parameters": 10, "size_bytes": 400}, {}
    yield "prepare", {"data_hash": "d" * 64, "majority_share": 0.09}, {}
    quantize = {"size_bytes": 100, "bits_per_quantized_weight": 4.1, "relative_error": 0.1}
    yield "quantize", {"base_hash": "b" * 64, **quantize}, {}
    yield "control", {"acc": 0.58, "acc_stderr": 0.01, "choice_nll": 1.4}, {}
    losses = [
        {"step": s, "loss": 3.0 / s, "learning_rate": 1e-3, "gradient_norm": 1.0}
        for s in range(1, 73)
    ]
    train = {"adapter_bytes": 8, "num_trainable_parameters": 5, "adapter_hash": "a" * 64}
    validation = [{"step": 0, "loss": 3.2}, {"step": 72, "loss": 0.9}]
    yield "train", {**train, "losses": losses, "validation": validation}, {}
    parts = ("weights", "adapter", "gradients", "optimizer", "activations")
    memory = {"peak_bytes": peak, **{f"{part}_bytes": peak // 5 for part in parts}}
    inference = {"prefill": {"tokens_per_second": 900.0}, "decode": {"tokens_per_second": 9.0}}
    observation = {
        "train_speed": {"tokens_per_second": speed, "step_seconds": {"median": 3.1}},
        "inference": inference,
        "process_memory": {"peak_above_import_bytes": peak + 1},
        "cuda": {"peak_allocated_bytes": 1, "peak_reserved_bytes": 2},
    }
    yield "measure", {"train_memory": memory}, observation
    check = {"mean_kl": 0.01, "largest_logit_difference": 0.2, "argmax_agreement": 0.99}
    yield "merge", {"merged_hash": "e" * 64, "size_bytes": 400, "check": check}, {}
    for subject, plain in SUBJECTS.items():
        share = acc if subject in ("adapter", "merged") else plain
        task = {"acc": share, "acc_stderr": 0.015, "nll": 1 / share, "num_items": 1000}
        wiki = {"bits_per_byte": 1.1, "num_items": 200}
        yield f"evaluate-{subject}", {"tasks": {"task": task, "wiki": wiki}, "items": {}}, {}


def write_run(folder: Path, precision: str = "nf4", rank: int = 8, **numbers: Any) -> None:
    """The files of one run in `folder`: params.yaml, dvc.lock, records, report."""
    cpu = {"model": "Some CPU", "cores": 2}
    environment = {"git_commit": "c" * 40, "git_dirty": False, "hardware": {"cpu": cpu, "gpus": []}}
    for stage, result, observation in fake_records(**numbers):
        seen = {**observation, "wall_seconds": 2.5, "environment": environment}
        record = records.Record(stage=stage, treatment={}, result=result, observation=seen)
        records.write_record(record, paths.record(stage, folder / paths.RESULTS))
    overrides = ["experiment=smoke", f"precision={precision}", f"adapter.rank={rank}"]
    overrides += ["train.learning_rate=1e-5", f"tracking.experiment={EXPERIMENT}"]
    records.write_text(folder / "params.yaml", compose_text(overrides, ROOT / "conf"))
    records.write_text(folder / "dvc.lock", lock_text(rank))
    records.write_text(folder / paths.REPORT / "report.md", "# Report\n")


def lock_text(rank: int, record_md5: str | None = None) -> str:
    record = f"  record:\n    cmd: r\n    deps: [{{path: x, md5: {record_md5}}}]\n"
    return (
        "schema: '2.0'\nstages:\n  train:\n    cmd: t\n    params:\n      params.yaml:\n"
        f"        adapter.rank: {rank}\n        train.learning_rate: 1e-05\n"
    ) + (record if record_md5 else "")


if __name__ == "__main__":
    import sys
    folder=Path(sys.argv[1]); os.makedirs(folder,exist_ok=True); os.chdir(folder)
    import random
    for p,b in (("fp32",9e8),("int8",6e8),("nf4",5e8)):
        for r in (4,8,16):
            write_run(Path("."),p,r,acc=0.6+0.02*random.random()+r/400,peak=int(b+r*1e6),speed=180-10*random.random())
            t=time.perf_counter(); print(tracking.publish(experiment="bitrank"), time.perf_counter()-t)
