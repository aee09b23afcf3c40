"""The `evaluate` stage: one model on the trained task and on the benchmarks, each item kept.

Four models are evaluated, each under the same tasks: the original, its quantized form, the
quantized base with the adapter, and the merged model. The effects of quantization and of training
are then two numbers. The paths are those of `bitrank.paths`, below the current directory.

Standard errors are those of a mean: sample standard deviation over the square root of the number of
documents. A perplexity has none of its own; `nll_stderr` beside it is of the mean over documents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from bitrank import (
    chain,
    determinism,
    environment,
    identity,
    models,
    paths,
    prompts,
    records,
    tasks,
    treatment,
    unmerged,
    weights,
)
from bitrank.artifacts import whole_folder
from bitrank.config import EvaluateConfig, RuntimeConfig
from bitrank.errors import UserError
from bitrank.tasks import Task

if TYPE_CHECKING:
    from bitrank.harness import Scores, Watch


def evaluate_model(
    subject: str, evaluate: EvaluateConfig, runtime: RuntimeConfig
) -> records.Record:
    """Score one of `paths.SUBJECTS` and write its item logs to `paths.items(subject)`.

    Which precision the base has is read from the live model: the original's scores do not depend on
    what is configured, and are kept when that changes.

    Raises:
        UserError: another subject, an artifact that is missing, a broken link of the `chain`.
    """
    if subject not in paths.SUBJECTS:
        raise UserError(
            f"there is no model {subject!r} to evaluate; choose from {', '.join(paths.SUBJECTS)}"
        )
    return unmerged.tell(subject) or _evaluate(subject, evaluate, runtime)


def _evaluate(subject: str, evaluate: EvaluateConfig, runtime: RuntimeConfig) -> records.Record:
    device = environment.prepare_runtime(runtime)
    trained = tasks.trained_task(paths.PREPARED)
    benchmarks = evaluate.benchmarks if subject in evaluate.benchmark_subjects else []
    wanted = [trained, *tasks.benchmark_tasks(benchmarks, paths.BENCHMARKS)]
    model, tokenizer, loaded = load_subject(subject, evaluate.dequantize, device)
    with determinism.watching() as seen:
        scores, seconds = score_model(model, tokenizer, wanted, evaluate.batch_size)
    items, hashes = _keep_items(subject, wanted, scores)
    return records.Record(
        stage=f"evaluate-{subject}",
        treatment={
            "subject": subject,
            **loaded,
            "batch_size": evaluate.batch_size,
            "threads": torch.get_num_threads(),
            "device": device.type,
            "lm_eval": metadata.version("lm_eval"),
            "determinism": determinism.describe(device, seen),
            "tasks": {
                task.name: _describe_task(task, scores[task.name], tokenizer) for task in wanted
            },
        },
        result={
            "tasks": {
                task.name: {
                    **_metrics(scores[task.name]),
                    **summarize_items(items[task.name]),
                    "num_choices": _num_choices(task),
                }
                for task in wanted
            },
            "items": hashes,
        },
        observation={"seconds": seconds},
    )


def _keep_items(
    subject: str, wanted: Sequence[Task], scores: Mapping[str, Scores]
) -> tuple[dict[str, list[records.Item]], dict[str, str]]:
    """Write the item logs, all or none; return the items and the sha256 of each log, by task."""
    items = {task.name: list_items(task, scores[task.name]) for task in wanted}
    with whole_folder(paths.items(subject)) as folder:
        for name, of_task in items.items():
            records.write_items(folder / f"{name}.jsonl", of_task)
        return items, {name: identity.hash_file(folder / f"{name}.jsonl") for name in items}


def load_subject(
    subject: str, dequantize: bool, device: torch.device
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer, and what was loaded: identities, live precision, weights computed on.

    A 4-bit layer whose compute type is its input's type multiplies by the dequantized weight
    already, so doing that once for all gives the same logits to the bit. int8 also quantizes the
    activations, and another compute type rounds: both stay on their stored weights.
    """
    where = {"original": paths.ORIGINAL, "merged": paths.MERGED}.get(subject, paths.QUANTIZED)
    if not where.is_dir():
        raise UserError(f"{where} does not exist; `dvc repro` makes it")
    handed, precision = chain.hand_over(subject, where, paths.ADAPTER, paths.PREPARED)
    if precision is None:
        model = models.load_model(where, device)
    else:
        model = weights.load_base(where, precision, device)
    live = treatment.describe(model)
    own = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    # Only 4-bit layers have a compute type.
    dequantized = dequantize and live["precision"]["compute_dtypes"] == [own]
    if dequantized:
        model = weights.dequantize_model(model)
    tokenizer = models.load_tokenizer(where)
    computed_on = "dequantized weights" if dequantized else "stored weights"
    loaded = {**handed, **live, "computed_on": computed_on}
    if subject != "adapter":
        return model, tokenizer, loaded
    from bitrank import adapters  # PEFT takes seconds to import, for one model of four

    tuned = adapters.load_adapter(model, paths.ADAPTER, handed["base_hash"])
    # The base is told as it is held, not as it is computed on.
    return tuned, tokenizer, {**loaded, **treatment.describe(tuned), "precision": live["precision"]}


def score_model(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Sequence[Task],
    batch_size: int,
    watch: Watch | None = None,
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Scores and wall seconds of each task. Tasks are run apart: one never changes another's."""
    from bitrank.harness import Scorer

    scorer = Scorer(model, tokenizer, batch_size, watch)
    scores, seconds = {}, {}
    for task in wanted:
        start = time.perf_counter()
        scores[task.name] = scorer.run(task)
        seconds[task.name] = time.perf_counter() - start
    return scores, seconds


def _metrics(scores: Scores) -> dict[str, float | None]:
    """lm-eval's; a free-text answer's exact match is also the accuracy, as which it is compared."""
    match = {
        name: scores.metrics[name] for name in scores.metrics if name.startswith("exact_match")
    }
    return {**scores.metrics, **{f"acc{name[11:]}": value for name, value in match.items()}}


def list_items(task: Task, scores: Scores) -> list[records.Item]:
    """One item a document, in the documents' order."""
    if task.output_type == "generate_until":
        return _generated_items(task, scores)
    make = _chosen_item if task.output_type == "multiple_choice" else _read_item
    rows = zip(task.documents, scores.loglikelihoods, scores.num_tokens, strict=True)
    return [make(task, *row) for row in rows]


def _chosen_item(
    task: Task, document: Mapping[str, Any], loglikelihoods: list[float], num_tokens: list[int]
) -> records.Item:
    choices, target = _choices_of(task, document)
    likeliest = loglikelihoods.index(max(loglikelihoods))
    return records.Item(
        doc_hash=identity.hash_json(document),
        target=choices[target],
        prediction=choices[likeliest],
        correct=likeliest == target,
        nll=-loglikelihoods[target],
        choice_nll=_log_sum_exp(loglikelihoods) - loglikelihoods[target],
        num_tokens=num_tokens[target],
    )


def _generated_items(task: Task, scores: Scores) -> list[records.Item]:
    rows = zip(task.documents, scores.generated, scores.loglikelihoods, scores.num_tokens,
               strict=True)  # fmt: skip
    return [
        records.Item(
            doc_hash=identity.hash_json(document),
            target=document[task.config["doc_to_target"]],
            prediction=text,
            correct=correct,
            nll=-loglikelihood,
            choice_nll=None,
            num_tokens=num_tokens,
        )
        for document, (text, correct), (loglikelihood,), (num_tokens,) in rows
    ]


def _read_item(
    task: Task, document: Mapping[str, Any], loglikelihoods: list[float], num_tokens: list[int]
) -> records.Item:
    return records.Item(
        doc_hash=identity.hash_json(document),
        target=document[task.config["doc_to_target"]],
        prediction=None,
        correct=None,
        nll=-loglikelihoods[0],
        choice_nll=None,
        num_tokens=num_tokens[0],
    )


def _choices_of(task: Task, document: Mapping[str, Any]) -> tuple[list[str], int]:
    """The choices of a document and the target's place; both are given, or named by a field."""
    choices = task.config["doc_to_choice"]
    choices = document[choices] if isinstance(choices, str) else choices
    target = document[task.config["doc_to_target"]]
    return choices, choices.index(target) if isinstance(target, str) else target


def _num_choices(task: Task) -> int | None:
    """Null where documents differ, or have nothing to choose from."""
    if task.output_type != "multiple_choice":
        return None
    counts = {len(_choices_of(task, document)[0]) for document in task.documents}
    return counts.pop() if len(counts) == 1 else None


def summarize_items(items: Sequence[records.Item]) -> dict[str, float | int | None]:
    """Means over documents, in nats, with their standard errors; null where there are no choices.

    `nll` is of the target under the whole vocabulary, `choice_nll` of its share among the choices;
    `nll_per_token` weighs each document alike, whatever its length.
    """
    nll, nll_stderr = tasks.mean_and_stderr([item.nll for item in items if item.nll is not None])
    summary: dict[str, float | int | None] = {"nll": nll, "nll_stderr": nll_stderr}
    shares = [
        item.nll / item.num_tokens for item in items if item.nll is not None and item.num_tokens
    ]
    if shares:
        mean, stderr = tasks.mean_and_stderr(shares)
        summary["nll_per_token"], summary["nll_per_token_stderr"] = mean, stderr
    among = [item.choice_nll for item in items if item.choice_nll is not None]
    if among:
        summary["choice_nll"], summary["choice_nll_stderr"] = tasks.mean_and_stderr(among)
    return {**summary, "num_items": len(items)}


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def _describe_task(
    task: Task, scores: Scores, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "output_type": task.output_type,
        "num_items": len(task.documents),
        "documents_hash": identity.hash_json(task.documents),
        "prompt": task.config["doc_to_text"],
        "num_forward_rows": scores.num_forward_rows,
    }
    if task.output_type == "generate_until":
        described["generation"] = task.config["generation_kwargs"]
        described["metrics"] = task.config["metric_list"]
    elif task.name == tasks.TRAINED:
        choices, _ = _choices_of(task, task.documents[0])
        described["num_choices"] = len(choices)
        described["num_one_token_choices"] = prompts.count_one_token(
            tokenizer, task.documents[0]["prompt"], choices
        )
    return described
