"""A training step of a Llama-8B-shaped model of random weights: 16 bits against NF4.

Memory (tensors, CUDA's allocated and reserved, the device's), tokens a second, MFU, energy, and
inference, of LoRA on a bf16 base, QLoRA on an NF4 base, and QLoRA with a paged optimizer. Random
weights cost what trained ones cost, so nothing is downloaded. Each contestant runs in a process of
its own, in turns. Needs the core alone (torch, transformers, peft, bitsandbytes, accelerate,
omegaconf), 17 GB of disk for the weights, and `nvidia-ml-py` to tell the energy:

    PYTHONPATH=src python benchmarks/llama_step.py                  # from the project's root
    PYTHONPATH=src python benchmarks/llama_step.py --checkpointing --rows 8
    PYTHONPATH=src python benchmarks/llama_step.py --shape tiny --device cpu    # does it work?
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import synthetic
from bitrank import (
    adapters,
    decoding,
    environment,
    estimate,
    identity,
    meters,
    phases,
    speed,
    steps,
    weights,
)
from bitrank.config import PrecisionConfig, RuntimeConfig
from bitrank.errors import UserError
from bitrank.estimate import BatchShape
from bitrank.progress import progress
from bitrank.workload import SEED, TrainStep
from reporting import Run, add_results_option, ratio, show_spread, spread, table, write_result

SHAPES: dict[str, dict[str, Any]] = {
    "llama31_8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 256, "max_position_embeddings": 512, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""The sizes of public configurations; the weights are drawn."""
CONTESTANTS: dict[str, tuple[str, synthetic.Optimizer]] = {
    "lora": ("plain", "adamw"),
    "qlora": ("nf4", "adamw"),
    "qlora-paged": ("nf4", "paged_adamw_32bit"),
}
"""How the base is held, and the optimizer. A paged optimizer needs CUDA."""
COMPARED = ("tokens_per_second", "tensor_peak_bytes", "mfu")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.only:
        Path(options.out).write_text(json.dumps(work(options)))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU; --device cpu --shape tiny shows whether this works")
    names = [n for n in CONTESTANTS if options.device == "cuda" or "paged" not in n]
    runs: list[Run] = []
    described: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        draw_weights(options, Path(folder))
        for turn in range(options.rounds):
            for name in names:
                report = start(name, Path(folder), sys.argv[1:] if arguments is None else arguments)
                described = report["environment"]
                runs.append(Run(name, report["matched"], report["measured"]))
                print(f"round {turn + 1}, {name}: done", file=sys.stderr)
    print(show(runs))
    ratios = {
        f"qlora / lora, {of}": ratio(_of(runs, "qlora"), _of(runs, "lora"), of) for of in COMPARED
    }
    for name, found in ratios.items():
        print(f"{name}: {found:.3f}")
    body = {
        "shape": {options.shape: SHAPES[options.shape]},
        "dtype": options.dtype,
        "definitions": {**phases.DEFINITIONS, "mfu": speed.MFU, "prediction": estimate.DEFINITION},
        "matched": runs[0].matched,
        "ratios": ratios,
        "contestants": {name: [dict(run.measured) for run in _of(runs, name)] for name in names},
        "spread": {
            name: {of: spread([run.measured[of] for run in _of(runs, name)]) for of in COMPARED}
            for name in names
        },
    }
    print(f"record: {write_result(options.results, 'llama_step', body, described)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A step of a Llama-8B shape: 16 bits against NF4.")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama31_8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"],
                        help="of what is not quantized (bfloat16; float32 on a CPU)")  # fmt: skip
    parser.add_argument("--rows", type=int, default=2, help="rows in the micro-batch of a step")
    parser.add_argument("--columns", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--supervised", type=int, default=256, help="trained tokens in a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--decode", type=int, default=32, help="tokens that are decoded")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where the weights may lie")
    parser.add_argument("--only", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    add_results_option(parser)
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    if not 0 < options.supervised < options.columns:
        parser.error("--supervised must be less than --columns")
    return options


def draw_weights(options: argparse.Namespace, folder: Path) -> None:
    """Save a model of random weights: all contestants load the same one."""
    settings = dict(SHAPES[options.shape])
    kind = settings.pop("model_type")
    torch.manual_seed(SEED)
    with torch.device(options.device):
        drawn = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **settings), dtype=getattr(torch, options.dtype)
        )
    drawn.save_pretrained(folder)
    del drawn
    if options.device == "cuda":
        torch.cuda.empty_cache()  # the contestants need the room


def start(contestant: str, base: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one contestant in a process of its own, and return its report."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, __file__, *arguments]
        command += ["--only", contestant, "--base", str(base), "--out", str(out)]
        ended = subprocess.run(
            command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=sys.stderr
        )
        if ended.returncode:
            raise UserError(f"{contestant} ended with status {ended.returncode}: see above")
        report: dict[str, Any] = json.loads(out.read_text())
        return report


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Meter and time one contestant; return `matched`, `measured`, `environment`."""
    runtime = RuntimeConfig(device=options.device, threads=options.threads, allow_slow=True)
    device = environment.prepare_runtime(runtime)
    phase = phases.PhaseMeter(device, meters.process_memory()["resident_bytes"])
    held, optimizer = CONTESTANTS[options.only]
    precision = getattr(synthetic, held)(options.dtype)
    with phase.phase("load"):
        base = weights.quantize_model(options.base, precision, device)
    weights.check_precision(base, precision)
    model = adapters.attach_adapter(base, synthetic.lora(options.rank), SEED)
    train = synthetic.training(optimizer, options.checkpointing, options.rows)
    steps.keep_activations(base, train)
    size = options.rows, options.columns, options.supervised
    batch = synthetic.make_batch(*size, base.config.vocab_size).to(device)
    with phase.phase("train"), progress(options.only, options.steps, "steps") as shown:
        step = TrainStep(model, train)
        for _ in range(options.warmup):
            step(batch)
        memory = phases.meter_step(step, batch)
        timed = speed.time_steps(step, [batch] * options.steps, shown)
    used = speed.compare_with_ceiling(base, model, timed, precision)
    model.eval()
    measured = {
        "train_speed": timed,
        **used,
        **phase.describe(),
        "train_memory": compare(options, precision, train, batch.micro[0], memory),
        "inference": time_inference(base, model, batch.micro[0]["input_ids"][:1], options),
        "tokens_per_second": timed["tokens_per_second"],
        "tensor_peak_bytes": memory["peak_bytes"],
        "precision": weights.describe_precision(base),
        "optimizer": optimizer,
    }
    return {
        "environment": environment.describe(),
        "matched": {
            "drawn_hash": identity.hash_weights(options.base),
            "adapter": adapters.describe_adapter(model),
            "batch": size,
            "steps": options.steps,
            "checkpointing": bool(base.is_activation_checkpointing),
            "device": device.type,
        },
        "measured": measured,
    }


def compare(
    options: argparse.Namespace,
    precision: PrecisionConfig,
    train: Any,
    micro: dict[str, torch.Tensor],
    memory: dict[str, Any],
) -> dict[str, Any]:
    """The metered step beside what its configuration predicts."""
    shape = BatchShape.of(micro, accumulated=False)
    given = SHAPES[options.shape], precision, synthetic.lora(options.rank), train, shape
    return phases.beside_prediction(memory, estimate.predict_step(*given))


def time_inference(
    base: Any, model: torch.nn.Module, prompt: torch.Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    why_not = weights.missing_kernel(base)
    if why_not is not None:
        return {"why_not": why_not}
    with progress("inference", len(decoding.BATCHES), "parts") as shown:
        return decoding.time_inference(model, prompt, options.decode, shown)


def _of(runs: Sequence[Run], contestant: str) -> list[Run]:
    return [run for run in runs if run.contestant == contestant]


def show(runs: Sequence[Run]) -> str:
    """Memory in GiB; "unknown" where the device does not tell."""
    rows = [["contestant", "tokens/s", "step, s", "MFU", "tensors", "predicted", "allocated",
             "reserved", "device", "J / 1,000 tokens"]]  # fmt: skip
    for name in dict.fromkeys(run.contestant for run in runs):
        found = [run.measured for run in _of(runs, name)]
        cuda = [(one["cuda"] or {}).get("train") or {} for one in found]
        energy = [one["train_speed"]["energy"]["joules_per_thousand_tokens"] for one in found]
        rows.append([
            name,
            show_spread([one["tokens_per_second"] for one in found]),
            show_spread([one["train_speed"]["step_seconds"]["median"] for one in found], 3),
            show_spread([one["mfu"] for one in found], 3),
            _gib([one["tensor_peak_bytes"] for one in found]),
            _gib([one["train_memory"]["predicted"]["peak_bytes"] for one in found]),
            *(_gib([of.get(key) for of in cuda])
              for key in ("peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes")),
            "unknown" if None in energy else show_spread(energy),
        ])  # fmt: skip
    return table(rows)


def _gib(sizes: Sequence[int | None]) -> str:
    known = [size / 2**30 for size in sizes if size is not None]
    return show_spread(known, 2) if len(known) == len(sizes) else "unknown"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
