"""Does a point train to the same bytes again; and where it does not, how far do repeats lie apart?

    PYTHONPATH=src python benchmarks/determinism.py                # params.yaml's point, 3 times
    PYTHONPATH=src python benchmarks/determinism.py --repeats 10

Run from the project's root after `dvc repro prepare quantize`. Each repeat is a process of its own
that trains into a folder of its own; nothing of the project's is changed. On a device that is not
deterministic, the spread told here is noise that no seed explains: differences between two
configurations below it mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bitrank import config, records, stage, training
from bitrank.errors import UserError
from bitrank.records import Record
from reporting import add_results_option, show_spread, spread, table, write_result

DEFINITIONS = {
    "same_bytes": "whether all repeats have the same adapter and the same result part of the "
    "record, to the byte",
    "differing_results": "keys of the result part in which a repeat differs from the first",
    "largest_loss_difference": "highest minus lowest loss of a step over the repeats, in nats, at "
    "the step where that is largest",
    "largest_weight_difference": "largest absolute difference of an adapter weight from the first "
    "repeat's",
    "relative_weight_difference": "norm of the difference of all adapter weights from the first "
    "repeat's, over the norm of the first; the largest of the repeats",
}
Weights = Mapping[str, torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train one point several times and compare.")
    parser.add_argument("--repeats", type=int, default=3, help="how often (3)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    add_results_option(parser)
    options = parser.parse_args(arguments)
    if options.once is not None:
        stage.execute(lambda: train_into(options.once), options.once / "train.json")
        return
    if options.repeats < 2:
        raise UserError(f"--repeats must be at least 2, got {options.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        found = [repeat(Path(folder) / str(number)) for number in range(options.repeats)]
    body = compare(*zip(*found, strict=True))
    print(show(body))
    described = found[0][0].observation["environment"]
    print(f"record: {write_result(options.results, 'determinism', body, described)}")
    check_claim(body)


def train_into(folder: Path) -> Record:
    """The `train` stage of `params.yaml`, with adapter and checkpoints in `folder`."""
    run = config.load()
    return training.train_adapter(
        run.train, run.adapter, run.precision, run.seeds, run.runtime, run.data.max_sequence_tokens,
        target=folder / "adapter", checkpoints=folder / "checkpoints",
    )  # fmt: skip


def repeat(folder: Path) -> tuple[Record, dict[str, torch.Tensor]]:
    """Record and adapter weights of one training in a process of its own."""
    folder.mkdir(parents=True)
    ended = subprocess.run(
        [sys.executable, __file__, "--once", str(folder)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if ended.returncode:
        raise UserError(f"a repeat failed: {ended.stderr.strip().splitlines()[-1]}")
    held: dict[str, torch.Tensor] = {}
    for file in (folder / "adapter").glob("*.safetensors"):
        held |= load_file(file)
    return records.read_record(folder / "train.json"), held


def compare(found: Sequence[Record], adapters: Sequence[Weights]) -> dict[str, Any]:
    """What the repeats have in common, and how far they lie apart."""
    first, results = found[0], [record.result for record in found]
    differing = sorted(
        {key for result in results for key in result if result[key] != first.result[key]}
    )
    losses = zip(*([step["loss"] for step in result["losses"]] for result in results), strict=True)
    distances = [distance(adapters[0], other) for other in adapters[1:]]
    return {
        "definitions": DEFINITIONS,
        "treatment": dict(first.treatment),
        "claimed": first.treatment["determinism"],
        "num_repeats": len(found),
        "same_bytes": not differing,
        "differing_results": differing,
        "num_different_adapters": len({result["adapter_hash"] for result in results}),
        "final_validation_loss": spread([r["validation"][-1]["loss"] for r in results]),
        "largest_loss_difference": max(max(step) - min(step) for step in losses),
        "largest_weight_difference": max(largest for largest, _ in distances),
        "relative_weight_difference": max(relative for _, relative in distances),
    }


def distance(first: Weights, other: Weights) -> tuple[float, float]:
    """(largest absolute, relative) difference of two adapters with the same tensors."""
    moved, norm, largest = 0.0, 0.0, 0.0
    for name, tensor in first.items():
        difference = (other[name].double() - tensor.double()).abs()
        largest = max(largest, float(difference.max()))
        moved += float(difference.square().sum())
        norm += float(tensor.double().square().sum())
    return largest, (moved / norm) ** 0.5


def show(body: Mapping[str, Any]) -> str:
    told = {True: "deterministic", False: "not deterministic", None: "unknown"}
    claimed = body["claimed"]
    rows = [
        ["repeats", str(body["num_repeats"])],
        ["the record says", f"{told[claimed['deterministic']]}: {claimed['reason']}"],
        ["different adapters", str(body["num_different_adapters"])],
        ["results that differ", ", ".join(body["differing_results"]) or "none"],
        ["final validation loss", show_spread(body["final_validation_loss"]["all"], 6)],
        ["largest difference of a loss", f"{body['largest_loss_difference']:.3g}"],
        ["largest difference of a weight", f"{body['largest_weight_difference']:.3g}"],
        ["relative difference of the adapter", f"{body['relative_weight_difference']:.3g}"],
    ]
    return table([["what", "found"], *rows])


def check_claim(body: Mapping[str, Any]) -> None:
    """Raises UserError: the record promises the same bytes, and they were not."""
    if body["claimed"]["deterministic"] and not body["same_bytes"]:
        raise UserError(
            "the record says that training repeats to the same bytes, but the repeats differ in "
            f"{', '.join(body['differing_results'])}"
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
