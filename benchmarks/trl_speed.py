"""Training speed and memory on this project's task: bitrank's loop against TRL's `SFTTrainer`.

TRL is no dependency of bitrank. Put it beside the environment, not into it, at the version below;
everything that it needs is there already, so that no other torch or transformers comes with it:

    pip install --no-deps --target /tmp/trl_site trl==1.16.0
    export PYTHONPATH=src:/tmp/trl_site
    python benchmarks/trl_speed.py           # after `dvc repro`, from the project's root
    python benchmarks/trl_speed.py --rounds 1 --warmup 1 --steps 2       # does it work here?

Contestants, each in its own process and in turns (A B C A B C ...), drawing from the same rows:

bitrank      `bitrank.trainer.AdapterTrainer`, as the `train` stage runs it
trl          `SFTTrainer` at its defaults, but with what must be equal, equal: see below
trl-grouped  the same with `train_sampling_strategy="group_by_length"`, the one of TRL's settings
             that is faster here: its loss is computed in chunks by default, padding-free batches
             and packing need FlashAttention, and packed batches would not be the same

What was made equal, always to TRL's advantage in speed: gradient checkpointing off (its default is
on); `bf16=False` (its default is on, and on a CPU without bf16 units over a hundred times slower);
adapter weights put back to fp32 and to the same first values after construction (it casts them to
bf16 on a 4-bit base); how long idle threads spin. Base, rows and PEFT are the same; how an
adapter's update is computed is each one's own (`adapter_forward`). Rows come as prompt and
completion, so both train the same tokens.
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

from bitrank import config
from bitrank.errors import UserError
from reporting import Run, add_results_option, ratio, show_spread, spread, table, write_result

TRL = "1.16.0"
CONTESTANTS = ("bitrank", "trl", "trl-grouped")
AIMS = {"trl": 1.8, "trl-grouped": 1.3}
"""How many times as fast as each of TRL's two bitrank means to be."""
LOSS_TOLERANCE = 1e-4
"""Nats: the same sums in another order. Another loss would differ in the first digits."""
DEFINITIONS = {
    "tokens_per_second": "tokens of the rows without padding, over the seconds between the ends of "
    "the first and the last timed step: loading, loss, clipping, optimizer, schedule and logging",
    "tokens_per_step": "mean of the timed steps; rows are short in one batch and long in another",
    "step_seconds": "from the end of one optimizer step to the end of the next",
    "first_loss": "mean loss over the supervised tokens of the first rows of the file, one batch, "
    "before the first step, by the contestant's own loss",
    "train_loss": "mean over all steps, warm-up included; each has its own order of the rows",
    "peak_above_import_bytes": "VmHWM above VmRSS after the imports: loading, all steps, "
    "and one on the batch of the longest rows",
    "tensor_peak_bytes": "highest sum of live tensor storages during one step, after the timed "
    "ones, on the batch of the longest rows, which is the same in every contestant",
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.only:
        from trl_contestants import work  # torch and the rest: seconds, in this process alone

        report = work(options.only, options.warmup, options.steps)
        Path(options.out).write_text(json.dumps(report))
        return
    described: dict[str, Any] = {}
    runs: list[Run] = []
    for turn in range(options.rounds):
        for contestant in options.contestants:
            report = start(contestant, options.warmup, options.steps)
            run = Run(contestant, report["matched"], report["measured"])
            described = report["environment"]
            runs.append(run)
            rate = run.measured["tokens_per_second"]
            print(f"round {turn + 1}, {contestant}: {rate:.1f} tokens/s", file=sys.stderr)
    check_same_loss(runs)
    print(show(runs))
    ratios = {name: compare(runs, name) for name in AIMS if name in options.contestants}
    for name, found in ratios.items():
        print(f"bitrank / {name}: {found['speed']:.2f} in speed (aim: {AIMS[name]:.1f}), "
              f"{found['tensor_peak']:.2f} in tensor memory")  # fmt: skip
    body = {
        "definitions": DEFINITIONS,
        "rounds": options.rounds,
        "warmup_steps": options.warmup,
        "timed_steps": options.steps,
        "trl": TRL,
        "aims": AIMS,
        "matched": runs[0].matched,
        "ratios": ratios,
        "contestants": {name: summarize(of(runs, name)) for name in options.contestants},
    }
    print(f"record: {write_result(options.results, 'trl_speed', body, described)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training speed: bitrank against TRL.")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each contestant")
    parser.add_argument("--warmup", type=int, default=3, help="first steps, not timed (1 or more)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each process")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    add_results_option(parser)
    return parser.parse_args(arguments)


def start(contestant: str, warmup: int, steps: int) -> dict[str, Any]:
    """Run one contestant in a process of its own, and return its report."""
    threads = str(config.load().runtime.threads)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    variables.setdefault("GOMP_SPINCOUNT", "30000")  # for all, as `bitrank.stage` sets it
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--only", contestant, "--out", str(out)]
        command += ["--warmup", str(warmup), "--steps", str(steps)]
        # What a library prints is no part of the table.
        ended = subprocess.run(command, env=variables, stdout=sys.stderr)
        if ended.returncode:
            raise UserError(f"{contestant} ended with status {ended.returncode}: see above")
        report: dict[str, Any] = json.loads(out.read_text())
        return report


def of(runs: Sequence[Run], contestant: str) -> list[Run]:
    return [run for run in runs if run.contestant == contestant]


def check_same_loss(runs: Sequence[Run]) -> None:
    """Raises UserError: on the same rows and first weights, two of the losses differ."""
    losses = [run.measured["first_loss"] for run in runs]
    if max(losses) - min(losses) > LOSS_TOLERANCE:
        found = ", ".join(f"{run.contestant} {run.measured['first_loss']:.6f}" for run in runs)
        raise UserError(f"not the same loss on the same rows, so nothing to compare: {found}")


def compare(runs: Sequence[Run], rival: str) -> dict[str, float]:
    """The median of bitrank over the rival's; speed above 1 and memory below 1 are better."""
    pair = of(runs, "bitrank"), of(runs, rival)
    return {
        "speed": ratio(*pair, "tokens_per_second"),
        "tensor_peak": ratio(*pair, "tensor_peak_bytes"),
    }


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    names = [name for name in DEFINITIONS if name != "step_seconds"]
    known = {name: [run.measured[name] for run in runs] for name in names}
    return {
        **{name: spread(values) if None not in values else None for name, values in known.items()},
        "step_seconds": [run.measured["step_seconds"] for run in runs],
        **{name: runs[0].measured[name] for name in ("padding_share", "adapter_forward")},
    }


def show(runs: Sequence[Run]) -> str:
    header = [
        "contestant",
        "tokens/s",
        "tokens/step",
        "padding",
        "first loss",
        "train loss",
        "tensors, MiB",
    ]
    rows = [[*header, "process, MiB"]]
    for name in dict.fromkeys(run.contestant for run in runs):
        found = [run.measured for run in of(runs, name)]
        process = [one["peak_above_import_bytes"] for one in found]
        rows.append([
            name,
            show_spread([one["tokens_per_second"] for one in found]),
            f"{found[0]['tokens_per_step']:.0f}",
            f"{found[0]['padding_share']:.1%}",
            f"{found[0]['first_loss']:.6f}",
            f"{found[0]['train_loss']:.4f}",
            show_spread([one["tensor_peak_bytes"] / 2**20 for one in found], 0),
            "unknown" if None in process else show_spread([b / 2**20 for b in process], 0),
        ])  # fmt: skip
    return table(rows)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
