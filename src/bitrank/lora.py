"""LoRA, and what differs from it in a switch or in the first weights only.

The update of a layer is W + s * B A, with A of shape (rank, in), B of shape (out, rank) and s of
alpha / rank, or alpha / sqrt(rank) with rsLoRA; A is random and B is zero at the start, so an
untrained adapter changes nothing (Hu et al. 2021, section 4.1). DoRA gives each row of the updated
weight a trained length m of its own: m * (W + s * B A) / ||W + s * B A||, where m starts at ||W||
(Liu et al. 2024, equation 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from bitrank import method, processes, targets, weights
from bitrank.adapter_config import LoraAdapter
from bitrank.errors import UserError
from bitrank.low_rank import FusedLora
from bitrank.method import Method, Tuned


class Lora(Method):
    def attach(
        self, base: PreTrainedModel, adapter: LoraAdapter, init_seed: int, original: Path
    ) -> Tuned:
        wanted = targets.find(base, adapter.target_modules, adapter.layers)
        check_rank(adapter.rank, wanted)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            use_dora=adapter.use_dora,
            use_rslora=adapter.use_rslora,
            target_modules=targets.names_for_peft(base, wanted),
            bias="none",
        )
        model = method.attach_with_peft(base, config, init_seed, wanted)
        self.begin(model, original)
        if not processes.are_sharding():  # FSDP gathers a weight for its own layer's pass only
            _fuse(model)
        return model

    def begin(self, model: PeftModel, original: Path) -> None:
        """Give the adapter other first weights than LoRA's."""

    def load(self, base: PreTrainedModel, folder: Path) -> Tuned:
        model = super().load(base, folder)
        _fuse(model)
        return model

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        a, b = factors(layer)
        updated: torch.Tensor = weight + torch.mul(b @ a, float(layer.scaling["default"]))
        if "default" not in layer.lora_magnitude_vector:
            return updated
        length: torch.Tensor = layer.lora_magnitude_vector["default"].weight.detach().float()
        factor: torch.Tensor = length / torch.linalg.vector_norm(updated, dim=1)
        return factor.unsqueeze(1) * updated

    def first_weights(self, model: Tuned) -> Iterator[tuple[str, torch.Tensor]]:
        for name, layer in self.adapted_layers(model):
            yield name, layer.lora_A["default"].weight

    def describe(self, model: Tuned) -> dict[str, Any]:
        layers = [layer for _, layer in self.adapted_layers(model)]
        return {
            **super().describe(model),
            "rank": sorted({int(layer.r["default"]) for layer in layers}),
            "scaling": sorted({float(layer.scaling["default"]) for layer in layers}),
            "use_dora": sorted({"default" in x.lora_magnitude_vector for x in layers}),
        }

    def describe_setting(self, adapter: LoraAdapter) -> dict[str, Any]:
        return {
            "alpha_per_rank": adapter.alpha_per_rank,
            "alpha_per_sqrt_rank": adapter.alpha_per_sqrt_rank,
            "dropout": adapter.dropout,
            "use_rslora": adapter.use_rslora,
        }


def check_rank(rank: int, wanted: Mapping[str, weights.Linear]) -> None:
    """Raises UserError: a rank above a layer's size."""
    for name, layer in wanted.items():
        if rank > min(layer.in_features, layer.out_features):
            raise UserError(
                f"`adapter.rank` {rank} is above the size of {name}, which is "
                f"{layer.out_features} x {layer.in_features}"
            )


def factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A, of shape (rank, in), and B, of shape (out, rank), fp32."""
    a, b = (part["default"].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    return a, b


def set_factors(layer: Any, a: torch.Tensor, b: torch.Tensor) -> None:
    """Let s * B A be `b @ a`, the scale shared by both."""
    share = float(layer.scaling["default"]) ** 0.5
    for part, value in ((layer.lora_A, a), (layer.lora_B, b)):
        part["default"].weight.data.copy_(value / share)


def _fuse(model: Tuned) -> None:
    """Compute plain LoRA in one operation; DoRA and other variants stay PEFT's own."""
    for _, layer in Method("lora").adapted_layers(model):
        layer.lora_variant.setdefault("default", FusedLora())
