"""Memory of a training step by tokens in a micro-batch: LoRA on fp32 weights against NF4.

Measured and predicted, with activations kept and with checkpointing. Bytes of tensors, which are
the same in every run and on every machine whose CPU kernels are the same, so nothing is repeated
and the machine may be busy. Needs `data/base/original` (`dvc repro fetch`) and the core alone.

    PYTHONPATH=src python benchmarks/memory_curve.py                      # from the project's root
    PYTHONPATH=src python benchmarks/memory_curve.py --tokens 128         # does it work here?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import synthetic
from bitrank import adapters, environment, estimate, identity, paths, phases, steps, weights
from bitrank.config import PrecisionConfig, RuntimeConfig
from bitrank.errors import UserError
from bitrank.estimate import BatchShape
from bitrank.workload import SEED, TrainStep
from reporting import add_results_option, table, write_result

PRECISIONS = {"fp32": synthetic.plain("float32"), "nf4": synthetic.nf4("float32")}
AIM = 0.10
"""Largest relative error of a prediction."""
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if any(tokens % options.columns for tokens in options.tokens):
        raise UserError(f"--tokens must be multiples of --columns, {options.columns}")
    environment.prepare_runtime(RuntimeConfig(device="cpu", threads=options.threads,
                                              allow_slow=False))  # fmt: skip
    cells = [
        cell
        for checkpointing in (False, True)
        for name, precision in PRECISIONS.items()
        for cell in meter(options, name, precision, checkpointing)
    ]
    print(show(cells))
    worst = max(abs(cell["prediction_error"]) for cell in cells)
    print(f"largest error of a prediction: {worst:.2%} (aim: {AIM:.0%})")
    body = {
        "definitions": {
            "memory": phases.DEFINITIONS["train"],
            "predicted": estimate.DEFINITION,
            "tokens": "rows times columns of the one micro-batch of a step; no padding; the last "
            "column of a row is only predicted, not read",
        },
        "base_hash": identity.hash_weights(options.base),
        "rank": options.rank,
        "columns": options.columns,
        "supervised_columns": options.supervised,
        "aim": AIM,
        "largest_error": worst,
        "cells": cells,
    }
    where = write_result(options.results, "memory_curve", body, environment.describe())
    print(f"record: {where}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory of a step: LoRA on fp32 against NF4.")
    parser.add_argument("--base", type=Path, default=paths.ORIGINAL, help="the original weights")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--columns", type=int, default=128, help="tokens in a row")
    parser.add_argument("--supervised", type=int, default=2, help="trained tokens in a row")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    add_results_option(parser)
    return parser.parse_args(arguments)


def meter(
    options: argparse.Namespace, name: str, precision: PrecisionConfig, checkpointing: bool
) -> Iterator[dict[str, Any]]:
    """A cell for each number of tokens, of one model."""
    settings = json.loads((options.base / "config.json").read_text(encoding="utf-8"))
    base = weights.quantize_model(options.base, precision, torch.device("cpu"))
    adapter = synthetic.lora(options.rank)
    model = adapters.attach_adapter(base, adapter, SEED)
    train = synthetic.training("adamw", checkpointing, 1)
    steps.keep_activations(base, train)
    step = TrainStep(model, train)
    size = options.columns, options.supervised, settings["vocab_size"]
    step(synthetic.make_batch(1, 8, 2, settings["vocab_size"]))  # makes the optimizer's state
    for tokens in options.tokens:
        batch = synthetic.make_batch(tokens // options.columns, *size)
        shape = BatchShape.of(batch.micro[0], accumulated=False)
        predicted = estimate.predict_step(settings, precision, adapter, train, shape)
        memory = phases.beside_prediction(phases.meter_step(step, batch), predicted)
        del memory["definition"]
        print(f"{name}, {tokens} tokens{', checkpointing' * checkpointing}", file=sys.stderr)
        yield {"precision": name, "tokens": tokens, "checkpointing": checkpointing,
               "logits_bytes": estimate.logits_bytes(settings, shape), **memory}  # fmt: skip


def show(cells: Sequence[dict[str, Any]]) -> str:
    """A row for each batch and way of going back; memory in MiB."""
    rows = [["tokens", "checkpointing", "fp32", "predicted", "error", "nf4", "predicted", "error",
             "saved"]]  # fmt: skip
    by_key = {(c["tokens"], c["checkpointing"], c["precision"]): c for c in cells}
    for tokens, checkpointing in dict.fromkeys((c["tokens"], c["checkpointing"]) for c in cells):
        pair = [by_key[tokens, checkpointing, name] for name in PRECISIONS]
        row = [str(tokens), "yes" if checkpointing else "no"]
        for cell in pair:
            row += [f"{cell['peak_bytes'] / MIB:.1f}",
                    f"{cell['predicted']['peak_bytes'] / MIB:.1f}",
                    f"{cell['prediction_error']:+.2%}"]  # fmt: skip
        rows.append([*row, f"{1 - pair[1]['peak_bytes'] / pair[0]['peak_bytes']:.1%}"])
    return table(rows)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
