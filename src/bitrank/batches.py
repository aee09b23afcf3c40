"""Length-bucketed batches, and the loss of the supervised positions only.

Training and measurement share this module, so what is timed is the step that trains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bitrank.prompts import IGNORED, Encoded


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest row. Each tensor has shape (rows, tokens), type int64."""
    width = max(len(row.input_ids) for row in rows)
    gaps = [width - len(row.input_ids) for row in rows]
    ids = [[*row.input_ids, *[pad_id] * gap] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * len(row.input_ids) + [0] * gap for row, gap in zip(rows, gaps, strict=True)]
    labels = [[*row.labels, *[IGNORED] * gap] for row, gap in zip(rows, gaps, strict=True)]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


def bucketed_order(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """An order of the rows in which each run of `batch_size` has nearly equal lengths.

    Rows of equal length are shuffled before they are cut into batches, and the batches are
    shuffled too; only the last batch, which may be short, keeps its place.
    """
    draw = random.Random(seed)
    order = list(range(len(lengths)))
    draw.shuffle(order)
    order.sort(key=lambda index: lengths[index])  # stable: ties stay shuffled
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    last = [cut.pop()] if len(cut[-1]) < batch_size else []
    draw.shuffle(cut)
    return [index for batch in [*cut, *last] for index in batch]


class BucketedSampler(torch.utils.data.Sampler[int]):
    """Row indices in length buckets, in another order each epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # A hundred thousand epochs of one seed never meet the orders of the next seed.
        seed = self._seed * 100_000 + self._epoch
        return iter(bucketed_order(self._lengths, self._batch_size, seed))


def supervised_loss(
    model: Any, batch: Mapping[str, torch.Tensor], num_targets: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens, over `num_targets` (this batch's own).

    The model is asked for logits from the first position that predicts a supervised token: with a
    vocabulary of 49,152 the output layer is a fifth of a small model's work. The sum over the
    targets of the whole global batch makes accumulation exact, whatever the micro-batches hold.
    The last column predicts nothing, so it is not read: a fifteenth of the work on short rows.
    Padding stands on the right, where causal attention does not look: without a mask attention
    takes its faster path.
    """
    return loss_from(model, batch, first_target(batch["labels"]), num_targets)


def first_target(labels: torch.Tensor) -> int:
    """The first column in which any row has a supervised token; 1 where none has."""
    supervised = (labels != IGNORED).any(dim=0).nonzero()
    return int(supervised[0]) if len(supervised) else 1


def loss_from(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    first: int,
    num_targets: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """`supervised_loss` where the first column with a target is known: no value is looked at."""
    labels = batch["labels"]
    positions = torch.arange(first - 1, labels.shape[1] - 1, device=labels.device)
    logits = model(
        input_ids=batch["input_ids"][:, :-1],
        logits_to_keep=positions,
        use_cache=False,
    ).logits
    targets = labels[:, first:]
    total = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / ((targets != IGNORED).sum() if num_targets is None else num_targets)


def count_tokens(batch: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Tokens of a batch: with padding, without it, and those that are trained on."""
    return {
        "padded": batch["input_ids"].numel(),
        "non_padding": int(batch["attention_mask"].sum()),
        "supervised": int((batch["labels"] != IGNORED).sum()),
    }
