"""Does anyone with PEFT and transformers get what bitrank evaluated?

    PYTHONPATH=src python benchmarks/plain_libraries.py              # after `dvc repro`
    PYTHONPATH=src python benchmarks/plain_libraries.py --rows 4     # does it work here?

Compared are next-token logits after prompts of the test split: of the adapter on its base and of
the merged model, as bitrank loads them, and as `plain_peft.py` does, which imports nothing of
bitrank and quantizes the original base itself. On a CPU; nothing is written below `data/`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bitrank import adapters, config, environment, identity, models, paths, records
from bitrank.config import PrecisionConfig, RunConfig
from bitrank.errors import UserError
from plain_peft import last_logits
from reporting import add_results_option, table, write_result

SCRIPT = Path(__file__).with_name("plain_peft.py")
DEFINITIONS = {
    "largest_difference": "of next-token logits, over all rows and the whole vocabulary",
    "same_first_token": "share of the rows in which the likeliest token is the same",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="bitrank against plain PEFT and transformers.")
    parser.add_argument("--rows", type=int, default=32, help="test prompts")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    run = config.load()
    tokenizer = models.load_tokenizer(paths.TOKENIZER)
    prompts = [row["prompt"] for row in records.read_jsonl(paths.split("test"))[: options.rows]]
    rows = [list(tokenizer(prompt).input_ids) for prompt in prompts]
    found = compare(run, rows)
    print(show(found))
    body = {"definitions": DEFINITIONS, "num_rows": len(rows), "compared": found,
            "precision": run.precision.name}  # fmt: skip
    print(f"record: {write_result(options.results, 'plain_libraries', body, described(run))}")


def compare(run: RunConfig, rows: list[list[int]]) -> dict[str, Any]:
    """Both models' distances from what bitrank loads, in the project of the current directory."""
    ours = own_logits(run, rows)
    theirs = plain_logits(run, rows)
    return {name: distance(ours[name], theirs[name]) for name in ours}


def own_logits(run: RunConfig, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    device = environment.prepare_runtime(run.runtime, run.precision)
    base = models.load_model(paths.QUANTIZED, device)
    adapted = adapters.load_adapter(base, paths.ADAPTER, identity.hash_weights(paths.QUANTIZED))
    merged = models.load_model(paths.MERGED, device)
    return {"adapter": last_logits(adapted, rows), "merged": last_logits(merged, rows)}


def plain_logits(run: RunConfig, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Those of `plain_peft.py`, in a process that cannot import bitrank.

    Raises:
        UserError: the script failed.
    """
    asked = {
        "original": str(paths.ORIGINAL), "adapter": str(paths.ADAPTER),
        "merged": str(paths.MERGED), "quantization": quantization_of(run.precision),
        "weight_dtype": run.precision.weight_dtype, "threads": run.runtime.threads, "rows": rows,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "asked.json", Path(folder) / "logits.safetensors"
        question.write_text(json.dumps(asked), encoding="utf-8")
        there = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), str(question), str(answer)],
            env={**there, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        if ended.returncode:
            raise UserError(f"{SCRIPT.name} failed: {ended.stderr.strip()}")
        return dict(load_file(answer))


def quantization_of(precision: PrecisionConfig) -> dict[str, Any] | None:
    """Arguments of transformers' BitsAndBytesConfig; it knows the block size 64 only."""
    if precision.quant_type is None:
        return None
    if precision.quant_type == "int8":
        return {"load_in_8bit": True}
    if precision.block_size != 64:
        raise UserError("plain transformers quantizes in blocks of 64: precision.block_size=64")
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": precision.quant_type,
        "bnb_4bit_use_double_quant": precision.double_quant,
        "bnb_4bit_compute_dtype": precision.compute_dtype,
        "bnb_4bit_quant_storage": precision.quant_storage,
    }


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, Any]:
    return {
        "equal": bool(torch.equal(ours, theirs)),
        "largest_difference": float((ours - theirs).abs().max()),
        "same_first_token": float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()),
    }


def show(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["model", "equal to the bit", "largest logit difference", "same first token"]]
    for name, one in found.items():
        equal = "yes" if one["equal"] else "no"
        shown = f"{one['largest_difference']:.2e}", f"{one['same_first_token']:.1%}"
        rows.append([name, equal, *shown])
    return table(rows)


def described(run: RunConfig) -> dict[str, Any]:
    return {**environment.describe(), "threads": run.runtime.threads}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
