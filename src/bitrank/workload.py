"""What `measure` runs: the step that trains, outside of a trainer, and batches to run it on.

A trainer's loop around the step (logging, schedule, loading) is not what is compared between
precisions and ranks. The batches are cut as in training, with a fixed seed: neither memory nor
speed depends on the run's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from bitrank import batches, meters, steps, weights
from bitrank.prompts import Encoded
from bitrank.tuning import TrainConfig

SEED = 0
PARTS = ("weights", "adapter", "gradients", "optimizer", meters.REST)
"""What the memory of a step is told by."""


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step, cut into micro-batches, with their tokens counted."""

    micro: list[dict[str, torch.Tensor]]
    tokens: Counter[str]

    @property
    def num_rows(self) -> int:
        return sum(len(micro["input_ids"]) for micro in self.micro)

    @property
    def widest_micro(self) -> dict[str, torch.Tensor]:
        """The first of the largest micro-batches."""
        return max(self.micro, key=lambda micro: micro["input_ids"].numel())

    def to(self, device: torch.device) -> GlobalBatch:
        moved = [{name: held.to(device) for name, held in micro.items()} for micro in self.micro]
        return GlobalBatch(moved, self.tokens)


class TrainStep:
    """One optimizer step, with the loss, the clipping and the optimizer of training."""

    def __init__(self, model: torch.nn.Module, config: TrainConfig) -> None:
        self.model = model.train()
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.device = self.trainable[0].device
        self.optimizer = steps.make_optimizer(model, config)
        self._max_grad_norm = config.max_grad_norm

    def __call__(self, batch: GlobalBatch) -> None:
        for micro in batch.micro:
            loss = batches.supervised_loss(self.model, micro, batch.tokens["supervised"])
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.trainable, self._max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def register_model(meter: meters.TensorMeter, model: torch.nn.Module) -> None:
    """Have `meter` count what the base holds as weights, and the adapter's own as adapter."""
    meter.register("adapter", weights.adapter_tensors(model))
    meter.register("weights", meters.reachable_tensors(model))


def draw_batches(
    rows: Sequence[Encoded], train: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> list[GlobalBatch]:
    """One epoch of global batches, cut as training cuts them; the last may be short."""
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    lengths = [len(row.input_ids) for row in rows]
    order = batches.bucketed_order(lengths, train.micro_batch_size, SEED)
    drawn = []
    for start in range(0, len(order), train.global_batch_size):
        picked = [rows[index] for index in order[start : start + train.global_batch_size]]
        micro = [
            batches.collate(picked[first : first + train.micro_batch_size], pad_id)
            for first in range(0, len(picked), train.micro_batch_size)
        ]
        tokens = sum((Counter(batches.count_tokens(cut)) for cut in micro), Counter[str]())
        drawn.append(GlobalBatch(micro, tokens))
    return drawn


def find_widest(drawn: Sequence[GlobalBatch]) -> GlobalBatch:
    """The one with the largest micro-batch, which sets the peak of a training run."""
    return max(drawn, key=lambda batch: batch.widest_micro["input_ids"].numel())


def spread_evenly(drawn: Sequence[GlobalBatch], count: int) -> list[GlobalBatch]:
    """`count` batches at the middle of as many equal parts of the batches ranked by size.

    A short last batch is left out, unless it is the only one. Largest first, so that the heap has
    grown before the others are timed.
    """
    rows = [sum(len(micro["labels"]) for micro in batch.micro) for batch in drawn]
    full = [batch for batch, size in zip(drawn, rows, strict=True) if size == max(rows)]
    ranked = sorted(full, key=lambda batch: batch.tokens["padded"], reverse=True)
    return [ranked[(2 * part + 1) * len(ranked) // (2 * count)] for part in range(count)]
