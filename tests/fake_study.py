"""A sweep whose points hold item logs and live treatments, as a report of it needs; all invented.

What a configuration is worth is told by the test: a mean NLL for each precision and rank, and how
much a seed moves it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_run
import fake_sweep
from fake_sweep import name_point, product_of

from bitrank import identity, paths, records
from bitrank.records import Item

NUM_ITEMS = 150
BASE = {"original": 3.2, "quantized": 3.3, "control": 2.6}
STEPS = {"fp32": 2.0, "int8": 2.2, "nf4": 2.5}
"""Seconds of a training step."""


def worth(precision: str, rank: int) -> float:
    """A higher rank learns more, 4 bits hardly cost anything."""
    return 1.2 - 0.02 * rank + (0.001 if precision == "nf4" else 0.0)


def write_study(
    root: Path,
    *,
    ranks: Sequence[int] = (2, 8),
    precisions: Sequence[str] = ("fp32", "nf4"),
    seeds: Sequence[int] = (0, 1, 2),
    statuses: Mapping[str, str] | None = None,
    nll: Callable[[str, int], float] = worth,
    seed_spread: float = 0.01,
    count: int = NUM_ITEMS,
) -> Path:
    folder = fake_sweep.write_sweep(
        root, ranks=ranks, precisions=precisions, seeds=seeds, statuses=statuses
    )
    for precision, rank, seed in product_of(precisions, ranks, seeds):
        key = name_point(precision, rank, seed)
        params = folder / key / "params.yaml"
        seeds_of_point = f"seeds:\n  init: {seed}\n  order: {seed}\n"
        text = params.read_text().replace("seeds:\n  init: 0\n  order: 0\n", seeds_of_point)
        records.write_text(params, text)
        if (statuses or {}).get(key, "done") == "done":
            level = nll(precision, rank) + seed_spread * random.Random(f"{key}").gauss(0, 1)
            fill(folder / key, precision, rank, level, count)
    return folder


def fill(folder: Path, precision: str, rank: int, level: float, count: int) -> None:
    for subject, own in {**BASE, "adapter": level, "merged": level}.items():
        tasks = {"task": answer(subject, own, count)}
        if subject in ("original", "quantized", "adapter"):
            tasks["wiki"] = answer("wiki", 4.0 if subject != "adapter" else 4.8 + rank / 50, 40)
        logs = {}
        for task, items in tasks.items():
            log = folder / "items" / subject / f"{task}.jsonl"
            records.write_items(log, items)
            logs[task] = identity.hash_file(log)
        scores = {task: fake_run.score(items) for task, items in tasks.items()}
        if subject == "control":
            change(folder, "control", "result", {**scores["task"], "items": logs})
        else:
            change(folder, f"evaluate-{subject}", "result", {"tasks": scores, "items": logs})
    change(folder, "train", "treatment", {
        "device": "cpu", "adapter": {"method": "lora", "rank": [rank], "dtypes": ["float32"]},
    })  # fmt: skip
    change(folder, "train", "result", {"trainable_share": 0.002 * rank, "kept_step": 72})
    change(folder, "fetch", "result", {"size_bytes": 1000})
    seconds = [STEPS[precision] * size for size in (1.3, 1.1, 1.0, 0.9, 0.8)]
    noise = random.Random(f"{precision}{rank}")
    change(folder, "measure", "treatment", {
        "device": "cpu", "threads": 2, "micro_batch_size": 16,
    })  # fmt: skip
    change(folder, "measure", "result", {"tokens_per_step": {"padded": 300.0}})
    change(folder, "measure", "observation", {
        "train_speed": {
            "tokens_per_second": 170.0, "cpu_seconds_per_second": 1.97,
            "step_seconds": {"median": seconds[2], "p10": seconds[4], "p90": seconds[0],
                             "all": [s * (1 + 0.01 * noise.random()) for s in seconds]},
        },
        "inference": {"decode": {"tokens_per_second": 9.0, "step_seconds": {"median": 1 / 9}}},
    })  # fmt: skip
    for stage in ("train", "measure", "evaluate-adapter"):
        set_hardware(folder, stage, "Example CPU")


def answer(name: str, level: float, count: int) -> list[Item]:
    """The same documents, as difficult for everyone; who is better is right more often."""
    hard, own = random.Random(count), random.Random(f"{name}{level}")
    items = []
    for index in range(count):
        difficulty = hard.gauss(0, 0.8)
        right = difficulty + 0.2 * own.gauss(0, 1) + level < 1.3
        nll = max(1e-3, level + difficulty + 0.1 * own.gauss(0, 1))
        items.append(Item(
            doc_hash=f"{count}-{index}", target=" a", prediction=" a" if right else " b",
            correct=right, nll=nll, choice_nll=nll * 0.9, num_tokens=1,
        ))  # fmt: skip
    return items


def read(folder: Path, stage: str) -> records.Record:
    return records.read_record(paths.record(stage, folder / "results"))


def change(folder: Path, stage: str, part: str, values: Mapping[str, Any]) -> None:
    """Update a part of a point's record."""
    file = paths.record(stage, folder / "results")
    record = records.read_record(file)
    getattr(record, part).update(values)
    records.write_record(record, file)


def set_hardware(folder: Path, stage: str, model: str) -> None:
    cpu = {"model": model, "cores": 2}
    environment = {"threads": 2, "hardware": {"cpu": cpu, "gpus": []},
                   "packages": {"torch": "2.13.0"}, "git_commit": "c" * 40,
                   "git_dirty": False}  # fmt: skip
    change(folder, stage, "observation", {"environment": environment})


def set_code(folder: Path, md5: str) -> None:
    """Of a module that training depends on, in the point's lock."""
    file = folder / "dvc.lock"
    lock = json.loads(file.read_text())
    lock["stages"]["train"]["deps"] = [{"path": "src/bitrank/trainer.py", "md5": md5}]
    records.write_text(file, json.dumps(lock))
