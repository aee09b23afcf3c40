"""Which learning rate has the least loss on the validation rows, at each rank?

    PYTHONPATH=src python benchmarks/learning_rates.py precision=nf4      # ranks 2, 8, 32
    PYTHONPATH=src python benchmarks/learning_rates.py adapter=full --rates 1e-4,3e-4 precision=fp32

Before a sweep that compares methods, each at its best: no test row is looked at. Overrides are as
of `bitrank params`. Training is `dvc repro train` in a workspace as a sweep's points have it, so
the sweep finds in the cache what it shares with this; interrupted, the same command goes on. Where
the best rate is the last of those tried on either side, the table says so: try further.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitrank import composition, environment, paths, pipeline, records, workspace
from bitrank.errors import UserError
from bitrank.projection import parse_yaml
from reporting import Run, add_results_option, differences, table, write_result

SCRATCH = paths.WORKSPACES / "learning_rates"
MATCHED = ("base_hash", "data_hash", "template_hash", "num_steps", "global_batch_size", "optimizer",
           "seeds", "threads", "device")  # fmt: skip
"""What must be the same at all rates and ranks, read from the records of `train`."""
DEFINITIONS = {
    "validation_loss": "nats a trained token on the validation rows, of the weights that are kept",
    "at_the_end": "the best of the rates tried is the least or the greatest of them",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learning rate with the least validation loss.")
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2", help="those to try (%(default)s)")
    parser.add_argument("--ranks", default="2,8,32", help="of the adapter (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="as of `bitrank params`")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    params = parse_yaml(composition.compose_text(options.overrides))
    method = params["adapter"]["method"]
    ranks = (
        [f"adapter.rank={rank}" for rank in options.ranks.split(",")]
        if "rank" in params["adapter"]
        else [""]
    )
    code = SCRATCH / "code" / workspace.hash_code()[:12]
    workspace.copy_code(code)
    found: dict[str, dict[float, Run]] = {}
    for rank in ranks:
        for rate in map(float, options.rates.split(",")):
            given = [*options.overrides, *filter(None, [rank]), f"train.learning_rate={rate}"]
            found.setdefault(rank or method, {})[rate] = train(code, given)
    runs = [run for rates in found.values() for run in rates.values()]
    if differing := differences(runs):
        raise UserError(f"the runs cannot be compared, they differ in: {', '.join(differing)}")
    print(show(found))
    body = {
        "definitions": DEFINITIONS,
        "overrides": options.overrides,
        "matched": runs[0].matched,
        "methods": {name: describe(rates) for name, rates in found.items()},
    }
    name = "-".join(["learning_rates", method, params["precision"]["name"]])
    print(f"record: {write_result(options.results, name, body, environment.describe())}")


def train(code: Path, overrides: Sequence[str]) -> Run:
    """The validation loss of one training, which DVC restores where it was done before."""
    text = composition.compose_text(overrides)
    params = parse_yaml(text)
    name = "_".join(o.replace("/", "-") for o in overrides)
    space = workspace.Workspace(SCRATCH / name)
    stages = pipeline.find_stages(pipeline.load(), params)
    space.make(code, text, pipeline.own_inputs(stages, workspace.CODE))
    log = SCRATCH / f"{name}.log"
    print(" ".join(overrides), flush=True)
    if space.reproduce(["train"], log, {}):
        raise UserError(f"training with {' '.join(overrides)} failed: see {log}")
    record = records.read_record(space.folder / paths.record("train"))
    space.remove()
    losses = {taken["step"]: taken["loss"] for taken in record.result["validation"]}
    return Run(
        name,
        {key: record.treatment[key] for key in MATCHED},
        {"validation_loss": losses[record.result["kept_step"]], "validation": losses},
    )


def describe(rates: Mapping[float, Run]) -> dict[str, Any]:
    best = min(rates, key=lambda rate: rates[rate].measured["validation_loss"])
    return {
        "rates": {str(rate): run.measured for rate, run in rates.items()},
        "best": best,
        "at_the_end": best in (min(rates), max(rates)),
    }


def show(found: Mapping[str, Mapping[float, Run]]) -> str:
    tried = next(iter(found.values()))
    rows = [["validation loss, nats a token", *(f"{rate:g}" for rate in tried), "best"]]
    for name, rates in found.items():
        told = describe(rates)
        end = " (the end of those tried)" if told["at_the_end"] else ""
        losses = [f"{run.measured['validation_loss']:.4f}" for run in rates.values()]
        rows.append([name, *losses, f"{told['best']:g}{end}"])
    return table(rows)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
