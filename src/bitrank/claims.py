"""Claims about LoRA and QLoRA as data: `conf/claims/*.yaml`, one file each.

A claim is a sentence that someone published, with the way in which it is read here: which metric,
of which runs or between which two, against which threshold, and under which conditions it was made.
All faults of all files are told at once. What a claim is worth is for `verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bitrank import schema
from bitrank.errors import ConfigError, UserError
from bitrank.pins import Faults
from bitrank.projection import parse_yaml

FOLDER = Path("conf/claims")
Metric = Literal[
    "train_peak_bytes",
    "train_step_seconds",
    "decode_step_seconds",
    "acc",
    "nll",
    "benchmark_nll_rise",
    "generalization_gap",
    "trainable_share",
    "adapter_file_share",
    "quantized_adapter_share",
    "predicted_65b_bytes",
]
"""What they are and where they stand in the records: `evidence.METRICS`."""
ANSWERED = ("acc", "nll")
"""Metrics of a model that answers the trained task: as differences."""
TIMED = ("train_step_seconds", "decode_step_seconds")
"""As relative changes."""
OF_RUNS_ONLY = ("benchmark_nll_rise",)
"""Which is a change already."""
EXTREMES = ("smallest", "largest")
"""In the place of a value: of the values that a sweep has."""
Answerer = Literal["adapter", "merged", "merged_then_quantized"]


class ClaimsError(ConfigError):
    """All faults of all claims' files, one line each."""

    subject = "the claims have"


@dataclass(frozen=True, kw_only=True)
class Selector:
    """A parameter with the values that fit, written as text: "8", "true", "null"."""

    field: str
    """Dotted, as in `params.yaml`."""
    values: list[str]

    def faults(self) -> Faults:
        if not self.values:
            yield "values", "must not be empty"
        if set(self.values) & set(EXTREMES) and len(self.values) > 1:
            yield "values", "must not have other values beside smallest or largest"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """From one configuration to another that differs in `may_differ` alone, and in its seed."""

    kind: Literal["pair"]
    first: list[Selector]
    second: list[Selector]
    may_differ: list[str]
    """Parameters, or whole sections of them."""
    equal: Literal["configuration", "memory"]
    """What is held equal: all else, or the peak of a training step, too."""
    first_answers: Answerer
    second_answers: Answerer

    def faults(self) -> Faults:
        for name in ("first", "second"):
            if not getattr(self, name):
                yield name, "must name at least one parameter"
        if not self.may_differ:
            yield "may_differ", "must name what the two differ in"


@dataclass(frozen=True, kw_only=True)
class EachRun:
    """A predicate on every configuration that fits."""

    kind: Literal["run"]
    fits: list[Selector]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    of: Literal["value", "difference", "relative change"]
    """Relative change: second / first - 1."""
    at_least: float | None
    at_most: float | None

    def faults(self) -> Faults:
        if self.at_least is None or self.at_most is None:
            if self.at_least is self.at_most:
                yield "at_least", "and `at_most` must not both be null"
        elif self.at_least > self.at_most:
            yield "at_least", "must not be above `at_most`"


@dataclass(frozen=True, kw_only=True)
class Claim:
    statement: str
    """The sentence, as it is met."""
    source: str
    """Who said or measured it, with the numbers."""
    reading: str
    """What it is taken to mean here."""
    metric: Metric
    contrast: Pair | EachRun
    threshold: Threshold
    conditions: list[Selector]
    """Under which it was made; only where they are the runs' own can it be refuted."""
    universal: bool
    """Made without conditions: one counterexample refutes it."""
    predicted: bool
    """The metric is computed for what was not run."""

    def faults(self) -> Faults:
        for name in ("statement", "source", "reading"):
            if not getattr(self, name).strip():
                yield name, "must not be empty"
        yield from self._misfits()
        if not self.universal and not self.conditions:
            yield "conditions", "must not be empty unless the claim is universal"
        if self.predicted != self.metric.startswith("predicted_"):
            yield "predicted", f"does not agree with `metric` {self.metric}"

    def _misfits(self) -> Faults:
        """What metric, contrast and threshold say against each other."""
        of_pair = isinstance(self.contrast, Pair)
        if of_pair == (self.threshold.of == "value"):
            yield "threshold.of", "must be value of a run, and a change of a pair"
        elif of_pair and self.metric in OF_RUNS_ONLY:
            yield "contrast.kind", f"must be run for {self.metric}"
        elif not of_pair and self.metric in (*ANSWERED, *TIMED):
            yield "contrast.kind", f"must be pair for {self.metric}"
        elif self.metric in ANSWERED and self.threshold.of != "difference":
            yield "threshold.of", f"must be difference for {self.metric}"
        elif self.metric in TIMED and self.threshold.of != "relative change":
            yield "threshold.of", f"must be relative change for {self.metric}"


def read_claims(folder: Path = FOLDER) -> dict[str, Claim]:
    """The claims by file name without its ending, sorted.

    Raises:
        UserError: there is no such folder, or nothing in it.
        ClaimsError: with the faults of all files.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder} holds no claim (*.yaml): run this in the project's root")
    faults: list[str] = []
    found = {file.stem: _read(file, faults) for file in files}
    if faults:
        raise ClaimsError(faults)
    return {name: claim for name, claim in found.items() if claim is not None}


def _read(file: Path, faults: list[str]) -> Claim | None:
    try:
        values: Any = parse_yaml(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        faults.append(f"{file}: cannot be read ({reason})")
        return None
    if not isinstance(values, Mapping):
        faults.append(f"{file}: must have keys: {', '.join(f.name for f in fields(Claim))}")
        return None
    own: list[str] = []
    claim = schema.build(Claim, values, "", own)
    faults.extend(f"{file}: {fault.replace('`.', '`')}" for fault in own)
    return claim
