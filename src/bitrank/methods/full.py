"""Full fine-tuning: what is added is nothing, and every weight of the base is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank import environment, full_tuning, weights
from bitrank.method import Method, Tuned


class Full(Method):
    merge_copies = 0  # all weights take the place of the base's
    copies_results = False

    def attach(self, base: PreTrainedModel, adapter: Any, init_seed: int, original: Path) -> Tuned:
        environment.seed_everything(init_seed)
        return full_tuning.unfreeze(base)

    def load(self, base: PreTrainedModel, folder: Path) -> Tuned:
        return full_tuning.load(base, folder)

    def save(self, model: Tuned, folder: Path, state: Mapping[str, torch.Tensor] | None) -> None:
        full_tuning.save(model, folder, state)

    def adapted_layers(self, model: Tuned) -> Iterator[tuple[str, Any]]:
        yield from weights.linear_layers(model).items()

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        own: torch.Tensor = layer.weight.detach().float()
        return own

    def first_weights(self, model: Tuned) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ()

    def describe(self, model: Tuned) -> dict[str, Any]:
        return full_tuning.describe(model)


METHOD = Full("full")
