"""What is evaluated, in lm-eval's own terms: the trained task, and benchmarks beside it.

A task is plain data: its documents, and lm-eval's keys for what becomes of a document. Nothing here
needs lm-eval, and `config` together with a file of the documents is also a task for its command
line, so that the scores can be checked from outside.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank import paths, records
from bitrank.errors import UserError
from bitrank.pins import Benchmark

TRAINED = "task"
"""Name of the trained task in every record and item log; which one it is says `data.name`."""


@dataclass(frozen=True)
class Task:
    name: str
    documents: list[dict[str, Any]]
    config: dict[str, Any]
    """lm-eval's keys, without where the documents are."""

    @property
    def output_type(self) -> str:
        """`multiple_choice`, `generate_until` or `loglikelihood_rolling`."""
        return str(self.config["output_type"])


def trained_task(prepared: Path) -> Task:
    """The test split: each row's answer is chosen among all answers, or generated.

    An answer brings its own leading space and nothing is put before it, so the model reads the
    tokens of `prompt + answer`, which it was trained on. White space at the end of a prompt is
    scored with the answer, as lm-eval always does.

    Raises:
        UserError: a file of the `prepare` stage is missing.
    """
    documents = records.read_jsonl(paths.split("test", prepared))
    generation = read_generation(prepared)
    if generation is not None:
        return Task(TRAINED, documents, {**_generating(generation), "task": TRAINED, **_ROW})
    choices = prepared / "choices.json"
    if not choices.is_file():
        raise UserError(f"{choices} does not exist; `dvc repro prepare` makes it")
    return Task(
        TRAINED,
        documents,
        {
            **_choosing("acc"),
            "task": TRAINED,
            **_ROW,
            "doc_to_choice": json.loads(choices.read_text(encoding="utf-8")),
        },
    )


@dataclass(frozen=True)
class FreeText:
    """How the free-text answers of the trained task are generated and compared."""

    stop: list[str]
    """Texts that end an answer, beside the end token."""
    max_new_tokens: int
    ignore: list[str]
    """Regular expressions whose matches do not count in a comparison."""


def read_generation(prepared: Path) -> FreeText | None:
    """How free text is asked for; null where the trained task is to choose."""
    file = prepared / "generation.json"
    return FreeText(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def same_answer(answer: str, reference: str, ignore: Sequence[str]) -> bool:
    """Whether lm-eval's `exact_match` holds, for answers that lm-eval does not see."""
    for pattern in (*ignore, *_OUTER_SPACE):
        answer, reference = re.sub(pattern, "", answer), re.sub(pattern, "", reference)
    return answer == reference


def benchmark_tasks(pins: Sequence[Benchmark], folder: Path) -> list[Task]:
    """The tasks of the prepared benchmarks, in the order in which they are configured.

    Raises:
        UserError: a benchmark that the `benchmarks` stage has not made.
    """
    return [
        Task(
            pin.name,
            records.read_jsonl(folder / f"{pin.name}.jsonl"),
            {**_CONFIGS[pin.format], "task": pin.name},
        )
        for pin in pins
    ]


def _choosing(*metrics: str) -> dict[str, Any]:
    means = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics]
    return {
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "metric_list": means,
    }


_ROW = {"doc_to_text": "prompt", "doc_to_target": "answer", "target_delimiter": ""}
"""Keys of the prepared rows."""
_OUTER_SPACE = (r"^\s+", r"\s+$")
"""Tokenizers differ in whether they give back the space before the first word."""


def _generating(asked: FreeText) -> dict[str, Any]:
    return {
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "generate_until",
        "generation_kwargs": {
            "until": asked.stop,
            "max_gen_toks": asked.max_new_tokens,
            "do_sample": False,
            # A model may bring settings of its own, which would make it another one.
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
        },
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "regexes_to_ignore": [*asked.ignore, *_OUTER_SPACE],
            }
        ],
    }


_CONFIGS: dict[str, dict[str, Any]] = {
    "lettered_options": {
        **_choosing("acc", "acc_norm"),
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "target_delimiter": " ",
    },
    "text_lines": {
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [
            {"metric": name, "aggregation": aggregation, "higher_is_better": False}
            for name, aggregation in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    },
}


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, s / sqrt(n), as lm-eval's; null for a single value."""
    if len(values) < 2:
        return values[0], None
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
