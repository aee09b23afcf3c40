"""A sweep as a paper has it: three ranks, three precisions, full fine-tuning; what failed, too.

All is invented. Curves, speeds and what merges keep differ by precision and rank, so that every
figure has something to show.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import fake_study
import fake_sweep
from fake_project import NUM_STEPS, ROOT

from bitrank import records
from bitrank.composition import compose_text

WAYS = {
    "merged_original": 0.985, "merged_dequantized": 1.0, "merged_requantized": 0.55,
    "merged_then_quantized": 0.993,
}  # fmt: skip
LEVELS = {"fp32": 1.21, "int8": 1.22, "nf4": 1.24}
BITS = {"fp32": 32, "int8": 8, "nf4": 4}


def write_paper(
    root: Path,
    ranks: Sequence[int] = (2, 8, 32),
    precisions: Sequence[str] = ("fp32", "int8", "nf4"),
    seeds: Sequence[int] = (0, 1, 2),
    statuses: Mapping[str, str] | None = None,
    count: int = fake_study.NUM_ITEMS,
) -> Path:
    folder = fake_study.write_study(
        root, ranks=ranks, precisions=precisions, seeds=seeds, statuses=statuses, count=count,
        nll=lambda precision, rank: LEVELS[precision] + 0.3 / rank, seed_spread=0.02,
    )  # fmt: skip
    for precision, rank, seed in fake_sweep.product_of(precisions, ranks, seeds):
        key = fake_sweep.name_point(precision, rank, seed)
        if (statuses or {}).get(key, "done") == "done":
            _enrich(folder / key, precision, rank)
    for seed in seeds:
        _add_full(folder, seed, count)
    return folder


def _enrich(point: Path, precision: str, rank: int) -> None:
    noise = random.Random(str(point.name))
    ways = {
        way: {"retained": {metric: {"share": share + 0.004 * noise.gauss(0, 1), "stderr": 0.01,
                                    "reason": None} for metric in ("nll", "acc")}, "reason": None}
        for way, share in WAYS.items() if precision != "fp32" or way != "merged_requantized"
    }  # fmt: skip
    fake_study.change(point, "fidelity", "result", {"ways": ways})
    _learn(point, LEVELS[precision] + 0.3 / rank, 0.02 * rank)
    speed = fake_study.read(point, "measure").observation
    speed["train_speed"]["tokens_per_second"] = 120 + 2.0 * BITS[precision] - 0.5 * rank
    speed["inference"]["decode"]["tokens_per_second"] = 4 + 0.2 * BITS[precision]
    fake_study.change(point, "measure", "observation", speed)


def _learn(point: Path, level: float, pace: float) -> None:
    noise = random.Random(str(point.name))

    def loss(step: int) -> float:
        return level - 0.4 + 9 * (1 + pace * step) ** -1.8

    losses = [{"step": step, "loss": loss(step) * (1 + 0.08 * noise.gauss(0, 1)),
               "learning_rate": 1e-3, "gradient_norm": 1.0}
              for step in range(1, NUM_STEPS + 1)]  # fmt: skip
    validation = [{"step": step, "loss": loss(step) + 0.002 * step}
                  for step in range(0, NUM_STEPS + 1, 24)]  # fmt: skip
    fake_study.change(point, "train", "result", {"losses": losses, "validation": validation})


def _add_full(folder: Path, seed: int, count: int) -> None:
    """A point of full fine-tuning; there is no adapter that could be served otherwise."""
    key = f"fp32-full-s{seed}-abc123"
    point = folder / key
    fake_sweep.write_point(point, "fp32", 64, seed, "done")
    text = compose_text(["experiment=smoke", "precision=fp32", "adapter=full"], ROOT / "conf")
    for name in ("\nseed", "\n  init", "\n  order"):
        text = text.replace(f"{name}: 0\n", f"{name}: {seed}\n")
    records.write_text(point / "params.yaml", text)
    fake_study.fill(point, "fp32", 64, 1.15 + 0.02 * random.Random(key).gauss(0, 1), count)
    fake_study.change(point, "train", "treatment", {
        "device": "cpu", "adapter": {"method": "full", "rank": [], "dtypes": ["float32"]},
    })  # fmt: skip
    fake_study.change(point, "fidelity", "result", {"ways": {}})
    memory = {"peak_bytes": 2_600_000_000}
    fake_study.change(point, "measure", "result", {"train_memory": memory})
    _learn(point, 1.15, 0.9)
    manifest = fake_sweep.read_manifest(folder)
    manifest["axes"]["adapter"] = ["lora", "full"]
    manifest["points"].append({
        "key": key, "params_sha256": "5" * 64, "status": "done", "reason": None, "seconds": 300.0,
        "overrides": ["adapter=full", "precision=fp32", f"seed={seed}"], "lock_sha256": "7" * 64,
    })  # fmt: skip
    records.write_text(folder / "sweep.json", json.dumps(manifest, indent=2))
