"""What is evaluated, in lm-eval's own terms: the trained task, and benchmarks beside it.

A task is plain data: its documents, and lm-eval's keys for what becomes of a document. Nothing here
needs lm-eval, and `config` together with a file of the documents is also a task for its command
line, so that the scores can be checked from outside.
"""

from __future__ import annotations

import json
import math
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
        """`multiple_choice` or `loglikelihood_rolling`."""
        return str(self.config["output_type"])


def trained_task(prepared: Path) -> Task:
    """The test split; each row's answer is chosen among all answers.

    An answer brings its own leading space and nothing is put before it, so the model reads the
    tokens of `prompt + answer`, which it was trained on. White space at the end of a prompt is
    scored with the answer, as lm-eval always does.

    Raises:
        UserError: a file of the `prepare` stage is missing.
    """
    documents = records.read_jsonl(paths.split("test", prepared))
    choices = prepared / "choices.json"
    if not choices.is_file():
        raise UserError(f"{choices} does not exist; `dvc repro prepare` makes it")
    return Task(
        TRAINED,
        documents,
        {
            **_choosing("acc"),
            "task": TRAINED,
            "doc_to_text": "prompt",
            "doc_to_target": "answer",
            "doc_to_choice": json.loads(choices.read_text(encoding="utf-8")),
            "target_delimiter": "",
        },
    )


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
