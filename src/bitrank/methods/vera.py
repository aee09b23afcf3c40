"""VeRA: a low-rank update of frozen random matrices that all layers share, with trained factors.

W + diag(b) B diag(d) A, where d, a number for each rank, and b, one for each output, are trained
(Kopiczko et al. 2024, equation 2). Layers of other shapes take a part of the shared A and B. The
matrices are saved with the factors: no generator has to draw them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import VeraConfig
from transformers import PreTrainedModel

from bitrank import method, targets, weights
from bitrank.adapter_config import VeraAdapter
from bitrank.method import Method, Tuned


class Vera(Method):
    def attach(
        self, base: PreTrainedModel, adapter: VeraAdapter, init_seed: int, original: Path
    ) -> Tuned:
        wanted = targets.find(base, adapter.target_modules, adapter.layers)
        config = VeraConfig(
            task_type="CAUSAL_LM",
            r=adapter.rank,
            d_initial=adapter.first_factor,
            vera_dropout=adapter.dropout,
            projection_prng_key=init_seed,
            save_projection=True,
            target_modules=targets.names_for_peft(base, wanted),
            bias="none",
        )
        return method.attach_with_peft(base, config, init_seed, wanted)

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = layer.get_delta_weight("default").detach().float()
        return weight + update

    def first_weights(self, model: Tuned) -> Iterator[tuple[str, torch.Tensor]]:
        for name, buffer in model.named_buffers():
            if weights.is_of_adapter(name):
                yield name, buffer

    def describe(self, model: Tuned) -> dict[str, Any]:
        layers = [layer for _, layer in self.adapted_layers(model)]
        return {
            **super().describe(model),
            "rank": sorted({int(layer.r["default"]) for layer in layers}),
            "num_frozen_shared": sum(
                held["default"].numel() for held in (layers[0].vera_A, layers[0].vera_B)
            ),
        }

    def describe_setting(self, adapter: VeraAdapter) -> dict[str, Any]:
        return {"first_factor": adapter.first_factor, "dropout": adapter.dropout}


METHOD = Vera("vera")
