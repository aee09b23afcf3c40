"""The `evaluate` stage against lm-eval's command line: the same scores, and the seconds of each.

    PYTHONPATH=src python benchmarks/lm_eval_cli.py              # after `dvc repro`, all its tasks
    PYTHONPATH=src python benchmarks/lm_eval_cli.py --items 32   # does it work here?

Both evaluate the adapter on its quantized base, on the same documents, with the same batch size and
threads, offline, as whole processes: `python stages/evaluate.py adapter`, as DVC starts it, and
`python -m lm_eval run --model hf ...` with the tasks written out as YAML (`bitrank.tasks` holds
lm-eval's own keys) and the documents as JSON lines. Neither writes below `data/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import OmegaConf

from bitrank import chain, config, environment, paths, records, tasks
from bitrank.errors import UserError
from bitrank.tasks import Task
from reporting import (
    ROOT,
    Run,
    add_results_option,
    ratio,
    show_spread,
    spread,
    table,
    write_result,
)

AIM = 0.5
"""At most this share of the command line's wall time."""
PREFIX = "bitrank_"
"""lm-eval has tasks of its own of the benchmarks' names."""
DEFINITIONS = {
    "wall_seconds": "of the whole process, from its start to its end, imports included",
    "largest_nll_difference": "over all documents, in nats, of -log p(target) and of the target's "
    "share among the choices, which holds the log-likelihoods of all choices",
    "same_scores": "each metric that the command line gives is equal, to the last digit",
}
Items = dict[str, list[records.Item]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one process gave."""

    run: Run
    scores: dict[str, dict[str, float]]
    items: Items


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluation: bitrank against lm-eval's CLI.")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each, in turns")
    parser.add_argument("--items", type=int, help="only this many documents a task")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    run = config.load()
    wanted = [
        dataclasses.replace(task, documents=task.documents[: options.items])
        for task in [
            tasks.trained_task(paths.PREPARED),
            *tasks.benchmark_tasks(run.evaluate.benchmarks, paths.BENCHMARKS),
        ]
    ]
    if any(task.output_type == "generate_until" for task in wanted):
        raise UserError("this compares log-likelihoods; the answers of the task are free text")
    ours, theirs = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours.append(run_stage(Path(folder), wanted))
        with tempfile.TemporaryDirectory() as folder:
            theirs.append(run_cli(Path(folder), wanted, run))
    report(wanted, ours, theirs, options.results)


def report(
    wanted: Sequence[Task], ours: list[Outcome], theirs: list[Outcome], folder: Path
) -> None:
    agreement = {task.name: compare(task.name, ours[0], theirs[0]) for task in wanted}
    rows = [["task", "documents", "metric", "bitrank", "lm_eval", "largest difference, nats"]]
    for name, found in agreement.items():
        for metric, (own, other) in found["scores"].items():
            difference = f"{found['largest_nll_difference']:.1e}"
            rows.append([name, str(found["documents"]), metric, repr(own), repr(other), difference])
    print(table(rows))
    pair = [outcome.run for outcome in ours], [outcome.run for outcome in theirs]
    share = ratio(*pair, "wall_seconds")
    seconds = [[run.measured["wall_seconds"] for run in runs] for runs in pair]
    same = all(found["same_scores"] for found in agreement.values())
    print(f"same scores to the last digit: {'yes' if same else 'NO'}")
    print(f"wall seconds: bitrank {show_spread(seconds[0])}, lm_eval {show_spread(seconds[1])}: "
          f"{share:.2f} of its time (aim: {AIM})")  # fmt: skip
    body = {
        "definitions": DEFINITIONS,
        "aim": AIM,
        "matched": pair[0][0].matched,
        "tasks": agreement,
        "same_scores": same,
        "share_of_wall_time": share,
        "wall_seconds": {"bitrank": spread(seconds[0]), "lm_eval": spread(seconds[1])},
    }
    described = {**environment.describe(), "threads": threads()}
    print(f"record: {write_result(folder, 'lm_eval_cli', body, described)}")


def threads() -> int:
    return config.load().runtime.threads


def compare(name: str, ours: Outcome, theirs: Outcome) -> dict[str, Any]:
    """Scores side by side, and the largest difference of an item's log-likelihoods."""
    other = theirs.scores[name]
    scores = {metric: (ours.scores[name][metric], value) for metric, value in other.items()}
    pairs = list(zip(ours.items[name], theirs.items[name], strict=True))
    if any(mine.doc_hash != its.doc_hash for mine, its in pairs):
        raise UserError(f"the documents of {name} are not the same, or in another order")
    differences = [
        abs(own - value)
        for mine, its in pairs
        for own, value in ((mine.nll, its.nll), (mine.choice_nll, its.choice_nll))
        if own is not None and value is not None
    ]
    return {
        "scores": scores,
        "same_scores": all(own == value for own, value in scores.values()),
        "largest_nll_difference": max(differences),
        "differing_predictions": sum(mine.prediction != its.prediction for mine, its in pairs),
        "documents": len(pairs),
    }


def run_stage(folder: Path, wanted: Sequence[Task]) -> Outcome:
    """The stage's script in a workspace of links: the project's records stay as they are."""
    data = folder / "data"
    data.mkdir()
    (folder / paths.DATA / "base").symlink_to((paths.DATA / "base").absolute())
    shutil.copytree(paths.ADAPTER, folder / paths.ADAPTER)
    for task in wanted:
        place = paths.split("test") if task.name == tasks.TRAINED else _benchmark(task.name)
        records.write_jsonl(folder / place, task.documents)
    choices = paths.PREPARED / "choices.json"
    (folder / choices).write_text(choices.read_text(encoding="utf-8"), encoding="utf-8")
    # A stage takes an adapter with the rows beside which it was trained alone; here are the test's.
    rows = chain.identify_rows(folder / paths.PREPARED)
    stamp = dataclasses.replace(chain.read_stamp(paths.ADAPTER), **vars(rows))
    chain.seal_adapter(folder / paths.ADAPTER, stamp)
    params: Any = OmegaConf.load("params.yaml")
    params.evaluate.benchmark_subjects = ["adapter"]
    OmegaConf.save(params, folder / "params.yaml")
    command = [sys.executable, str(ROOT / "stages" / "evaluate.py"), "adapter"]
    seconds = timed(command, folder)
    record = records.read_record(folder / paths.record("evaluate-adapter"))
    scores, treatment = record.result["tasks"], record.treatment
    matched = {
        "documents": {name: of["documents_hash"] for name, of in treatment["tasks"].items()},
        **{name: treatment[name] for name in ("base_hash", "adapter_hash", "batch_size")},
    }
    items = {task.name: records.read_items(folder / paths.items("adapter") / f"{task.name}.jsonl")
             for task in wanted}  # fmt: skip
    return Outcome(Run("bitrank", matched, {"wall_seconds": seconds}), scores, items)


def run_cli(folder: Path, wanted: Sequence[Task], run: config.RunConfig) -> Outcome:
    """lm-eval's command line on the same files; what it computed is read from what it wrote."""
    for task in wanted:
        documents = folder / f"{task.name}.jsonl"
        records.write_jsonl(documents, task.documents)
        # JSON is YAML.
        (folder / f"{task.name}.yaml").write_text(json.dumps(to_yaml(task, documents)))
    base, adapter = paths.QUANTIZED.absolute(), paths.ADAPTER.absolute()
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf",
               "--model_args", f"pretrained={base},peft={adapter},dtype=float32",
               "--tasks", ",".join(PREFIX + task.name for task in wanted),
               "--include_path", str(folder), "--batch_size", str(run.evaluate.batch_size),
               "--device", run.runtime.device,
               "--output_path", str(folder / "out"), "--log_samples"]  # fmt: skip
    seconds = timed(command, folder)
    (written,) = (folder / "out").rglob("results_*.json")
    results = json.loads(written.read_text(encoding="utf-8"))
    samples = {task.name: read_samples(folder / "out", task) for task in wanted}
    from bitrank import identity

    matched = {
        "documents": {
            name: identity.hash_json([sample["doc"] for sample in of_task])
            for name, of_task in samples.items()
        },
        "base_hash": identity.hash_weights(paths.QUANTIZED),
        "adapter_hash": identity.hash_weights(paths.ADAPTER),
        "batch_size": int(results["config"]["batch_size"]),
    }
    return Outcome(
        Run("lm_eval", matched, {"wall_seconds": seconds}),
        {task.name: metrics_of(results["results"][PREFIX + task.name]) for task in wanted},
        {task.name: to_items(task, samples[task.name]) for task in wanted},
    )


def to_yaml(task: Task, documents: Path) -> dict[str, Any]:
    """The task as lm-eval's command line reads it: our keys, and where the documents are."""
    where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(documents)}}}
    return {**task.config, **where, "task": PREFIX + task.name}


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Its metrics and standard errors under their names without the filter's, numbers only."""
    return {
        name.partition(",")[0]: value
        for name, value in results.items()
        if "," in name and isinstance(value, float)
    }


def read_samples(folder: Path, task: Task) -> list[dict[str, Any]]:
    """What `--log_samples` wrote of a task, in the documents' order."""
    (file,) = folder.rglob(f"samples_{PREFIX}{task.name}_*.jsonl")
    return sorted(records.read_jsonl(file), key=lambda sample: int(sample["doc_id"]))


def to_items(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[records.Item]:
    """The command line's log-likelihoods as items, by the code that makes ours of ours."""
    from bitrank.evaluation import list_items
    from bitrank.harness import Scores

    found = [[loglikelihood(answer) for answer in sample["resps"]] for sample in samples]
    unknown = [[0] * len(of_document) for of_document in found]
    return list_items(task, Scores({}, found, unknown, 0, generated=[]))


def loglikelihood(answer: Any) -> float:
    """lm-eval writes numbers as text, in lists: of a choice with whether it is the likeliest."""
    while isinstance(answer, list):
        answer = answer[0]
    return float(answer)


def timed(command: Sequence[str], folder: Path) -> float:
    """Wall seconds of a whole process, which must end well."""
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": str(threads()),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),  # else the second run would find the first's
        "TOKENIZERS_PARALLELISM": "false",
    }
    print(f"running: {' '.join(command[1:4])} ...", file=sys.stderr)
    start = perf_counter()
    ended = subprocess.run(command, cwd=folder, env=variables, stdout=sys.stderr)
    seconds = perf_counter() - start
    if ended.returncode:
        raise UserError(f"{' '.join(command[1:4])} ended with status {ended.returncode}")
    return seconds


def _benchmark(name: str) -> Path:
    return paths.BENCHMARKS / f"{name}.jsonl"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
