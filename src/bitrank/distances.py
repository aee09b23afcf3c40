"""How far one model's next tokens are from another's: KL, largest difference, same first choice.

KL(expected || found) is over the whole vocabulary, in nats, of the distributions of the token that
follows a prompt.
"""

from __future__ import annotations

from math import sqrt
from statistics import fmean, stdev
from typing import Any, TypeAlias

import torch

Row: TypeAlias = tuple[int, ...]


def measure_distance(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float, bool]:
    """(KL, largest difference, whether the likeliest token is the same) of logits (vocabulary)."""
    expected, found = expected.double(), found.double()
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    divergence = float((p.exp() * (p - q)).sum())
    largest = float((expected - found).abs().max())
    return divergence, largest, bool(expected.argmax() == found.argmax())


class NextTokens:
    """The logits after each prompt, caught while a model is scored (`harness.Scorer`'s `watch`)."""

    def __init__(self) -> None:
        self.logits: dict[Row, torch.Tensor] = {}

    def __call__(self, row: Row, logits: torch.Tensor) -> None:
        prompt = prompt_of(row, logits)
        if prompt not in self.logits:
            self.logits[prompt] = logits[0].cpu().clone()


class Distances:
    """How far another model is from one whose logits were caught; its own are not kept."""

    def __init__(self, expected: NextTokens) -> None:
        self._expected = expected
        self._found: dict[Row, tuple[float, float, bool]] = {}

    def __call__(self, row: Row, logits: torch.Tensor) -> None:
        prompt = prompt_of(row, logits)
        if prompt not in self._found:
            expected = self._expected.logits[prompt]
            self._found[prompt] = measure_distance(expected, logits[0].cpu())

    def summarize(self) -> dict[str, Any]:
        """Means over the distinct prompts, summed in the order of their tokens."""
        rows = [self._found[prompt] for prompt in sorted(self._found)]
        divergences = [divergence for divergence, _, _ in rows]
        return {
            "num_prompts": len(rows),
            "mean_kl": fmean(divergences),
            "mean_kl_stderr": stdev(divergences) / sqrt(len(rows)) if len(rows) > 1 else None,
            "largest_logit_difference": max(largest for _, largest, _ in rows),
            "argmax_agreement": fmean(agreed for _, _, agreed in rows),
        }


def prompt_of(row: Row, logits: torch.Tensor) -> Row:
    """What stands before the tokens that are scored; the first of the logits follows it."""
    return row[: len(row) - len(logits) + 1]
