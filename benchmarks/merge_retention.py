"""How much of the fine-tuning gain each way to serve keeps, over seeds.

    PYTHONPATH=src python benchmarks/merge_retention.py                   # seeds 0, 1, 2
    PYTHONPATH=src python benchmarks/merge_retention.py precision=fp32    # LoRA, then quantize
    PYTHONPATH=src python benchmarks/merge_retention.py --items 100 --seeds 0 1   # sooner

After `dvc repro`, whose rows and original base it uses. Overrides are as of `bitrank params`. Each
seed is trained and served by the pipeline's own stages, `train` and `fidelity`, in a folder of its
own below `--work`; nothing is written below `data/`. Interrupted, the same command with the same
`--work` goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bitrank import composition, config, environment, paths, records
from bitrank.errors import UserError
from reporting import ROOT, Run, add_results_option, differences, table, write_result

METRICS = ("nll", "choice_nll", "acc")
MATCHED = ("base_hash", "original_hash", "data_hash", "documents_hash", "codes", "ways",
           "merge_dtype", "batch_size", "threads", "computed_on")  # fmt: skip
"""What must be the same for all seeds, read from the records of `fidelity`."""
DEFINITIONS = {
    "gain_kept": "(untrained - served) / (untrained - base and adapter), of means over the same "
    "test items; untrained: the base that the adapter was trained on",
    "mean, stderr": "over seeds: the sample's standard deviation over the root of their number",
    "seeds_worse": "seeds in which NLL is worse than that of base and adapter by at least 1.96 "
    "standard errors of the items' differences",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Share of the gain that each merge keeps.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--items", type=int, help="only the first of the test rows")
    parser.add_argument("--work", type=Path, help="folder that keeps adapters (a temporary one)")
    parser.add_argument("overrides", nargs="*", help="as of `bitrank params`")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        runs = [
            serve_seed(work.resolve(), seed, options.items, options.overrides)
            for seed in options.seeds
        ]
    ways = summarize(runs)
    print(show(ways))
    body = {
        "definitions": DEFINITIONS,
        "overrides": options.overrides,
        "matched": runs[0].matched,
        "seeds": {run.contestant: run.measured for run in runs},
        "ways": ways,
    }
    name = "-".join(["merge_retention", runs[0].measured["precision"]])
    print(f"record: {write_result(options.results, name, body, environment.describe())}")


def serve_seed(work: Path, seed: int, items: int | None, overrides: Sequence[str]) -> Run:
    """Train one seed and serve its adapter in every way, as far as that is not done yet."""
    given = [*overrides, f"seed={seed}", f"fidelity.num_items={'null' if items is None else items}"]
    folder = lay_out(work / f"seed-{seed}", given)
    run = config.load(folder / "params.yaml")
    if run.precision == config.load(ROOT / "params.yaml").precision:
        base = ROOT
    else:  # one for all seeds
        base = lay_out(work / "base", overrides)
        run_stage(base, "quantize")
        run_stage(base, "evaluate-quantized", "quantized")
    for made in (paths.QUANTIZED, paths.items("quantized")):
        link(folder, base, made)
    run_stage(folder, "train")
    record = run_stage(folder, "fidelity")
    result = record.result
    return Run(
        f"seed {seed}",
        {**{key: record.treatment[key] for key in MATCHED}, "num_items": result["num_items"]},
        {
            "precision": run.precision.name,
            "adapter_hash": record.treatment["adapter_hash"],
            "scores": result["scores"],
            "ways": result["ways"],
            "update_to_step": result["update_to_step"],
        },
    )


def lay_out(folder: Path, overrides: Sequence[str]) -> Path:
    """A folder in which stages run: composed parameters, and links to what the project has made."""
    text = composition.compose_text(overrides, ROOT / "conf")
    held = folder / "params.yaml"
    if held.is_file() and OmegaConf.load(held) != OmegaConf.create(text):
        raise UserError(f"{folder} is of another configuration: take another --work")
    records.write_text(held, text)
    for made in (paths.ORIGINAL, paths.TOKENIZER, paths.PREPARED, paths.BENCHMARKS,
                 paths.items("original")):  # fmt: skip
        link(folder, ROOT, made)
    return folder


def link(folder: Path, source: Path, made: Path) -> None:
    if not (source / made).exists():
        raise UserError(f"{made} does not exist; `dvc repro` makes it")
    if not (folder / made).exists():
        (folder / made).parent.mkdir(parents=True, exist_ok=True)
        (folder / made).symlink_to((source / made).resolve(), target_is_directory=True)


def run_stage(folder: Path, name: str, *arguments: str) -> records.Record:
    """The record of a stage, which runs unless it has left one."""
    path = folder / paths.record(name)
    if not path.is_file():
        script = ROOT / "stages" / f"{name.partition('-')[0]}.py"
        there = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run([sys.executable, str(script), *arguments], cwd=folder, env=there)
        if ended.returncode:
            raise UserError(f"{script.name} failed in {folder}: see above")
    return records.read_record(path)


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Each way over the seeds.

    Raises:
        UserError: the seeds differ in more than the seed.
    """
    if differing := differences(runs):
        raise UserError(f"the seeds cannot be compared, they differ in: {', '.join(differing)}")
    return {
        way: summarize_way([run.measured["ways"][way] for run in runs])
        for way, found in runs[0].measured["ways"].items()
        if found["reason"] is None
    }


def summarize_way(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    changes = [one["changes"]["nll"] for one in found]
    return {
        "gain_kept": {
            metric: over_seeds([one["retained"][metric]["share"] for one in found])
            for metric in METRICS
        },
        "seeds_worse": sum(c["outcome"] == "separable" and c["mean"] > 0 for c in changes),
        "num_seeds": len(found),
        **{
            key: over_seeds([one[key] for one in found])
            for key in ("mean_kl", "argmax_agreement", "codes_changed_share", "update_left_share")
        },
    }


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard error; null where a seed has no value, the error also for one seed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "stderr": None, "all": list(values)}
    stderr = statistics.stdev(known) / sqrt(len(known)) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "stderr": stderr, "all": list(values)}


def show(ways: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["served", "gain kept, NLL", "choice NLL", "accuracy", "KL, nats", "codes changed",
             "update left", "seeds worse"]]  # fmt: skip
    for way, found in ways.items():
        kept = [percent(found["gain_kept"][metric]) for metric in METRICS]
        kl = found["mean_kl"]["mean"]
        shares = [percent(found[key]) for key in ("codes_changed_share", "update_left_share")]
        worse = f"{found['seeds_worse']} of {found['num_seeds']}"
        rows.append([way, *kept, f"{kl:.3g}", *shares, worse])
    return table(rows)


def percent(share: Mapping[str, Any]) -> str:
    if share["mean"] is None:
        return "–"
    error = "" if share["stderr"] is None else f" ± {100 * share['stderr']:.2g}"
    return f"{100 * share['mean']:.4g}{error} %"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
