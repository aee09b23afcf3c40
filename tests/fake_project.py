"""The files of one finished run, small and invented, for the tests of what is published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitrank import paths, records
from bitrank.composition import compose_text

ROOT = Path(__file__).parents[1]
EXPERIMENT = "fakes"
NUM_STEPS = 72
PLAIN_ACC = {"original": 0.27, "quantized": 0.25, "adapter": 0.66, "merged": 0.65}


def make_records(
    acc: float, peak: int, speed: float = 170.0
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(stage, result, observation) of every stage, in the shape that the stages write."""
    yield "fetch", {"base_hash": "0" * 64, "num_parameters": 10, "size_bytes": 400}, {}
    yield "prepare", {"data_hash": "d" * 64, "majority_share": 0.09}, {}
    yield "benchmarks", {"benchmarks": {}}, {}
    size = {"size_bytes": 100, "bits_per_quantized_weight": 4.1, "relative_error": 0.1}
    yield "quantize", {"base_hash": "b" * 64, **size}, {}
    yield "control", {"acc": 0.58, "acc_stderr": 0.01, "choice_nll": 1.4, "items": {}}, {}
    losses = [
        {"step": step, "loss": 3 / step, "learning_rate": 1e-3, "gradient_norm": 1.0}
        for step in range(1, NUM_STEPS + 1)
    ]
    validation = [{"step": 0, "loss": 3.2}, {"step": NUM_STEPS, "loss": 0.9}]
    train = {"adapter_bytes": 8, "num_trainable_parameters": 5, "adapter_hash": "a" * 64}
    yield "train", {**train, "losses": losses, "validation": validation}, {}
    parts = ("weights", "adapter", "gradients", "optimizer", "activations")
    memory = {"peak_bytes": peak, **{f"{part}_bytes": peak // 5 for part in parts},
              "predicted": {"peak_bytes": peak + 2}}  # fmt: skip
    used = {f"{phase}_memory": {"peak_bytes": peak // 2} for phase in ("evaluate", "merge")}
    speeds = {"prefill": 900.0, "prefill_batched": 950.0, "decode": 9.0, "decode_batched": 40.0}
    process = {"load_peak_above_import_bytes": 5, "train_peak_above_import_bytes": peak + 1}
    observation = {
        "train_speed": {"tokens_per_second": speed, "step_seconds": {"median": 3.1}},
        "inference": {name: {"tokens_per_second": found} for name, found in speeds.items()},
        "process_memory": process,
        "cuda": {"train": {"peak_allocated_bytes": 1, "peak_reserved_bytes": 2}},
        "mfu": 0.4,
    }
    yield "measure", {"train_memory": memory, **used}, observation
    check = {"mean_kl": 0.01, "largest_logit_difference": 0.2, "argmax_agreement": 0.99}
    yield "merge", {"merged_hash": "e" * 64, "size_bytes": 400, "check": check}, {}
    kept = {"mean_kl": 0.2, "changes": {}, "retained": {"nll": {"share": 0.9, "stderr": 0.02}}}
    ways = {"merged_original": kept, "merged_requantized": {"reason": "not in 4 bits"}}
    yield "fidelity", {"ways": ways}, {}
    for subject, plain in PLAIN_ACC.items():
        share = acc if subject == "adapter" else plain
        task = {"acc": share, "acc_stderr": 0.015, "nll": 1 / share, "num_items": 1000}
        wiki = {"bits_per_byte": 1.1, "word_perplexity_stderr": None, "num_items": 200}
        yield f"evaluate-{subject}", {"tasks": {"task": task, "wiki": wiki}, "items": {}}, {}


def write_project(
    folder: Path, *overrides: str, rank: int = 8, acc: float = 0.66, peak: int = 900_000_000
) -> None:
    """Write params.yaml, dvc.lock, records and report below `folder`."""
    cpu = {"model": "Some CPU", "cores": 2}
    environment = {"git_commit": "c" * 40, "git_dirty": False, "hardware": {"cpu": cpu, "gpus": []}}
    for stage, result, observation in make_records(acc, peak):
        seen = {**observation, "wall_seconds": 2.5, "environment": environment}
        record = records.Record(stage=stage, treatment={}, result=result, observation=seen)
        records.write_record(record, paths.record(stage, folder / paths.RESULTS))
    given = ["experiment=smoke", f"adapter.rank={rank}", f"tracking.experiment={EXPERIMENT}"]
    given += ["train.learning_rate=1e-5", *overrides]
    records.write_text(folder / "params.yaml", compose_text(given, ROOT / "conf"))
    records.write_text(folder / "dvc.lock", make_lock(rank))
    records.write_text(folder / paths.REPORT / "report.md", "# Report\n")


def make_lock(rank: int, recorded: str | None = None, stale: bool = False) -> str:
    """DVC writes 0.00001 as 1e-05; `recorded`: a hash in the `record` stage's own entry."""
    used = {"params.yaml": {"adapter.rank": rank, "train.learning_rate": "1e-05"}}
    stages: dict[str, Any] = {"train": {"cmd": "t", "params": used}}
    if recorded is not None:
        stages["record"] = {"cmd": "r", "deps": [{"path": "data/report", "md5": recorded}]}
    if stale:
        stages["removed"] = {"cmd": "x", "params": {"params.yaml": {"adapter.rank": 0}}}
    return json.dumps({"schema": "2.0", "stages": stages}).replace('"1e-05"', "1e-05")


def change_record(stage: str, part: str, change: Mapping[str, Any]) -> None:
    """Update a part of a record below the current folder."""
    record = records.read_record(paths.record(stage))
    getattr(record, part).update(change)
    records.write_record(record, paths.record(stage))
