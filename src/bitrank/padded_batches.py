"""Rows of tokens in the batches that lm-eval makes of them: padded on the right, one a row.

A batch may be computed in slices. What a row gives is then the same to the last digit, as long as
the slice keeps the batch's width: attention sums over the padded row, in an order that depends on
its length, and a matrix product treats each row alike from `FEWEST_ROWS` on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from bitrank.prefix_trees import Row

FEWEST_ROWS = 16
"""With fewer rows MKL's sgemm takes another kernel, whose sums differ in the last digit."""


@dataclass(frozen=True)
class Slice:
    """Some rows of a batch."""

    rows: Sequence[Row]
    width: int
    """Tokens of the batch's longest row."""


def cut(rows: Sequence[Row], batch_size: int, workers: int) -> Iterator[Slice]:
    """All rows, from long to short, each batch in a slice for each worker if rows suffice."""
    ordered = sorted(rows, key=lambda row: (-len(row), row))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        width = len(batch[0])
        counts = [n for n in range(2, workers + 1) if len(batch) // n * width >= FEWEST_ROWS]
        count = max(counts, default=1)
        ends = [len(batch) * number // count for number in range(count + 1)]
        for first, end in pairwise(ends):
            yield Slice(batch[first:end], width)


def target_logits(
    model: Any, part: Slice, num_targets: Sequence[int], device: torch.device
) -> list[torch.Tensor]:
    """For each row, the logits that predict its last `num_targets` tokens, (targets, vocabulary).

    Causal attention does not look at the padding. lm-eval pads with 0, whatever the tokenizer's pad
    token is.
    """
    ids = torch.zeros(len(part.rows), part.width, dtype=torch.long)
    for row, tokens in zip(ids, part.rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    last = max(len(row) for row in part.rows)
    first = min(len(row) - targets for row, targets in zip(part.rows, num_targets, strict=True))
    if len(part.rows) * (last - first) < FEWEST_ROWS:
        first, last = 0, part.width
    kept = torch.arange(first, last, device=device)
    with torch.no_grad():
        logits = model(ids.to(device), logits_to_keep=kept, use_cache=False).logits
    return [
        of_row[len(row) - first - targets : len(row) - first]
        for of_row, row, targets in zip(logits, part.rows, num_targets, strict=True)
    ]
