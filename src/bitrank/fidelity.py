"""The `fidelity` stage: one adapter served in every way, each against what was trained.

What was trained is the adapter beside the base that training saw. Every other way (`serving` names
them) is a model of its own, built in memory, that answers the same items: how far are its next
tokens, how much of the fine-tuning gain does it keep, and, where it is held in 4 bits, how many
codes does the update change at all?

The gain is that of the trained model over the untrained base of the training, whose answers the
`baseline` stage has left. All comparisons are paired item by item; a share of a gain that noise can
explain is not told. KL(trained || served) is of the distributions of the first token after each
prompt, over the whole vocabulary, in nats. The paths are those of `bitrank.paths`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitrank import (
    adapters,
    chain,
    codes,
    environment,
    evaluation,
    identity,
    methods,
    models,
    paths,
    records,
    serving,
    statistics,
    tasks,
    weights,
)
from bitrank.artifacts import whole_folder
from bitrank.config import EvaluateConfig, FidelityConfig, RuntimeConfig, Way
from bitrank.distances import Distances, NextTokens
from bitrank.errors import UserError
from bitrank.method import Method
from bitrank.records import Item
from bitrank.tasks import Task

if TYPE_CHECKING:
    from bitrank.harness import Watch

UNTRAINED = {"original": "untrained_original", "quantized": "untrained_quantized"}
"""How the baseline's subjects are called among those that are served."""
Answers = dict[str, list[Item]]
"""Items by task."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every way is scored with."""

    fidelity: FidelityConfig
    batch_size: int
    dtype: torch.dtype
    """Of a merged model, as it is served."""
    device: torch.device
    asked: Sequence[Task]
    tokenizer: PreTrainedTokenizerBase

    def score(self, model: torch.nn.Module, watch: Watch) -> tuple[Answers, dict[str, float]]:
        """Items and seconds of each task; `watch` sees the rows of the trained one."""
        items: Answers = {}
        seconds: dict[str, float] = {}
        for task in self.asked:
            scores, took = evaluation.score_model(
                model, self.tokenizer, [task], self.batch_size,
                watch if task.name == tasks.TRAINED else None,
            )  # fmt: skip
            items[task.name] = evaluation.list_items(task, scores[task.name])
            seconds |= took
        return items, seconds


def measure_fidelity(
    fidelity: FidelityConfig, evaluate: EvaluateConfig, merge_dtype: str, runtime: RuntimeConfig
) -> records.Record:
    """Serve the adapter in each of `fidelity.ways`; item logs go to `paths.items("fidelity")`.

    Raises:
        UserError: an artifact that is missing or does not belong to the others, or answers of
            the untrained base to other rows.
    """
    device = environment.prepare_runtime(runtime)
    asked = _ask(fidelity, evaluate)
    answers = {name: _read_answers(subject, asked) for subject, name in UNTRAINED.items()}
    tuned, tokenizer, loaded = evaluation.load_subject("adapter", evaluate.dequantize, device)
    bench = Bench(fidelity=fidelity, batch_size=evaluate.batch_size, device=device, asked=asked,
                  dtype=getattr(torch, merge_dtype), tokenizer=tokenizer)  # fmt: skip
    trained = NextTokens()
    seconds: dict[str, dict[str, float]] = {}
    answers[serving.TRAINED], seconds[serving.TRAINED] = bench.score(tuned, trained)
    chain.check_original(paths.ORIGINAL, loaded["original_hash"])
    bases = Bases.load(device, loaded["base_hash"])
    ways: dict[str, dict[str, Any]] = {}
    changes: dict[str, list[serving.Change]] = {}
    for way in fidelity.ways:
        reason = serving.reason_against(way, bases.quantized, bases.method)
        ways[way] = {"reason": reason}
        if reason is None:
            served, changes[way] = bases.serve(way, tuned, bench)
            distances = Distances(trained)
            answers[way], seconds[way] = bench.score(served, distances)
            ways[way] |= {
                **distances.summarize(),
                **_compare(answers, way),
                **serving.summarize_changes(changes[way]),
            }
    return records.Record(
        stage="fidelity",
        treatment={**_describe(bench, loaded), "codes": _settings_of(bases, fidelity)},
        result={
            "num_items": len(asked[0].documents),
            "scores": _summarize_all(answers),
            "ways": ways,
            **_describe_layers(bases, tuned, fidelity, changes),
            "items": _keep_items(answers),
        },
        observation={"seconds": seconds},
    )


def _ask(fidelity: FidelityConfig, evaluate: EvaluateConfig) -> list[Task]:
    trained = tasks.trained_task(paths.PREPARED)
    trained = replace(trained, documents=trained.documents[: fidelity.num_items])
    pins = evaluate.benchmarks if fidelity.benchmarks else []
    return [trained, *tasks.benchmark_tasks(pins, paths.BENCHMARKS)]


def _read_answers(subject: str, asked: Sequence[Task]) -> Answers:
    """What the untrained base answered in the `baseline` stage; to benchmarks, if it was asked."""
    found = {}
    for task in asked:
        log = paths.items(subject) / f"{task.name}.jsonl"
        if task.name != tasks.TRAINED and not log.is_file():
            continue
        items = records.read_items(log)[: len(task.documents)]
        if [item.doc_hash for item in items] != [identity.hash_json(d) for d in task.documents]:
            raise UserError(f"{log} answers other rows than {paths.PREPARED} has: run `dvc repro`")
        found[task.name] = items
    return found


@dataclass(frozen=True)
class Bases:
    """The weights that everything is merged from; the first stays in the host's memory."""

    original: PreTrainedModel
    quantized: PreTrainedModel
    base_hash: str
    """Of the second, which the adapter was trained on."""
    method: Method

    @classmethod
    def load(cls, device: torch.device, base_hash: str) -> Bases:
        return cls(
            models.load_model(paths.ORIGINAL, keep_dtype=True),
            models.load_model(paths.QUANTIZED, device),
            base_hash,
            methods.of(adapters.saved_method(paths.ADAPTER)),
        )

    def serve(
        self, way: Way, tuned: adapters.Tuned, bench: Bench
    ) -> tuple[torch.nn.Module, list[serving.Change]]:
        """The model that a way serves, and what became of each layer's update on the way."""
        if way in serving.UNMERGED:  # on purpose on a base that the adapter was not trained on
            base = models.load_model(paths.ORIGINAL, bench.device)
            return adapters.load_adapter(base, paths.ADAPTER, self.base_hash), []
        served = models.load_model(paths.QUANTIZED, bench.device)
        if self.method.name == "full":  # whose other weights were trained too
            served = adapters.load_adapter(served, paths.ADAPTER, self.base_hash)
        served = weights.dequantize_model(served).to(bench.dtype)
        target, changes = weights.linear_layers(served), []
        for layer in serving.read_layers(
            self.original, self.quantized, tuned, bench.fidelity.codes
        ):
            merged, change = serving.merge_layer(way, layer)
            plain = target[layer.name]
            plain.weight.data = merged.to(bench.dtype)
            if plain.bias is not None:
                plain.bias.data = layer.updated_bias(plain.bias.data.float()).to(bench.dtype)
            changes += [change] if change else []
        return served, changes


def _compare(answers: Mapping[str, Answers], way: str) -> dict[str, Any]:
    """Change from what was trained, and share of the gain that is retained, on the trained task."""
    before, trained, served = (
        answers[name][tasks.TRAINED] for name in (UNTRAINED["quantized"], serving.TRAINED, way)
    )
    pairs = statistics.pair_items(trained, served)
    changes = {
        "nll": statistics.compare_nll(pairs),
        "choice_nll": statistics.compare_nll(pairs, "choice_nll"),
        "acc": statistics.compare_accuracy(pairs),
    }
    columns: dict[str, statistics.Column] = {
        "nll": "nll", "choice_nll": "choice_nll", "acc": "correct",
    }  # fmt: skip
    return {
        "changes": {name: None if c is None else vars(c) for name, c in changes.items()},
        "retained": {
            name: vars(statistics.retained_share(before, trained, served, column))
            for name, column in columns.items()
        },
    }


def _summarize_all(answers: Mapping[str, Answers]) -> dict[str, dict[str, Any]]:
    return {
        name: {task: summarize(items) for task, items in of_tasks.items()}
        for name, of_tasks in answers.items()
    }


def summarize(items: Sequence[Item]) -> dict[str, float | int | None]:
    """Means over the items with their standard errors; accuracy where there is one."""
    judged = [float(item.correct) for item in items if item.correct is not None]
    found = evaluation.summarize_items(items)
    if judged:
        found["acc"], found["acc_stderr"] = tasks.mean_and_stderr(judged)
    return found


def _describe_layers(
    bases: Bases,
    tuned: adapters.Tuned,
    fidelity: FidelityConfig,
    changes: Mapping[str, Sequence[serving.Change]],
) -> dict[str, Any]:
    """Each adapted layer: its update beside the quantization step, and what 4 bits left of it."""
    by_layer: dict[str, dict[str, Any]] = {}
    for way, of_way in changes.items():
        for change in of_way:
            by_layer.setdefault(change.name, {})[way] = serving.summarize_changes([change])
    layers = [
        {**serving.describe_update(layer), "ways": by_layer.get(layer.name, {})}
        for layer in serving.read_layers(bases.original, bases.quantized, tuned, fidelity.codes)
        if layer.adapted is not None
    ]
    ratios = sorted(x["update_to_step"] for x in layers if x["update_to_step"] is not None)
    spread = None
    if ratios:
        spread = {"smallest": ratios[0], "median": median(ratios), "largest": ratios[-1]}
    return {"update_to_step": spread, "layers": layers}


def _keep_items(answers: Mapping[str, Answers]) -> dict[str, str]:
    """Write the item logs of what was scored here; return the sha256 of each by way and task."""
    with whole_folder(paths.items("fidelity")) as folder:
        files = dict(_write_items(folder, answers))
        return {name: identity.hash_file(folder / file) for name, file in files.items()}


def _write_items(folder: Path, answers: Mapping[str, Answers]) -> Iterator[tuple[str, str]]:
    for way, of_tasks in answers.items():
        if way not in UNTRAINED.values():
            for task, items in of_tasks.items():
                records.write_items(folder / way / f"{task}.jsonl", items)
                yield f"{way}/{task}", f"{way}/{task}.jsonl"


def _settings_of(bases: Bases, fidelity: FidelityConfig) -> dict[str, Any]:
    """How Q quantizes: as the base's own codes were made, else as `fidelity.codes` says."""
    layers = weights.linear_layers(bases.quantized).values()
    own = [found.settings for layer in layers if (found := codes.codes_of(layer)) is not None]
    return {**vars(own[0] if own else fidelity.codes), "of_the_base": bool(own)}


def _describe(bench: Bench, loaded: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **loaded,
        "ways": list(bench.fidelity.ways),
        "merge_dtype": str(bench.dtype).removeprefix("torch."),
        "batch_size": bench.batch_size,
        "threads": torch.get_num_threads(),
        "device": bench.device.type,
        "lm_eval": metadata.version("lm_eval"),
        "update_definition": "root mean square of the update over the weights of a layer",
        "step_definition": codes.STEP,
        "documents_hash": {task.name: identity.hash_json(task.documents) for task in bench.asked},
    }
