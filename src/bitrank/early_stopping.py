"""Stop when the validation loss no longer falls, and keep the weights of its lowest point.

All is decided from the list of validations and the file of the best weights, so that a run that is
resumed with both goes on as if nothing had happened. Every rank sees the same losses, and keeps its
own part of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bitrank import processes


def best_validation(validations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The validation of the lowest loss, the earliest of equal ones."""
    return min(validations, key=lambda validation: float(validation["loss"]))


class EarlyStopping(TrainerCallback):
    """Watches `validations`, to which another callback adds before this one is called."""

    def __init__(self, patience: int, validations: Sequence[dict[str, Any]]) -> None:
        self._patience, self._validations = patience, validations

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        **_: Any,
    ) -> None:
        if not self._validations or self._validations[-1]["step"] != state.global_step:
            return
        best = best_validation(self._validations)
        if best is self._validations[-1]:
            held = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            with _file(args).open("wb") as file:  # torch, given a path, does not tell a full disk
                torch.save(held, file)
        since = len(self._validations) - 1 - self._validations.index(best)
        if since >= self._patience:
            control.should_training_stop = True
            control.should_save = False  # Trainer takes one more step after a checkpoint, always

    on_train_begin = on_log  # the first validation comes before the first step

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        **_: Any,
    ) -> None:
        best = torch.load(_file(args), weights_only=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in best:
                    parameter.copy_(best[name])


def _file(args: TrainingArguments) -> Path:
    return Path(args.output_dir) / f"best-{processes.rank()}.pt"
