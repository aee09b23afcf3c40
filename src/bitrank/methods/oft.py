"""OFT: a trained rotation of each block of a layer's inputs.

W R, with R made of blocks, each from a skew-symmetric matrix by Cayley's transform (Qiu et al.
2023), the inverse in it as the first five terms of Neumann's series (Qiu et al. 2025).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import OFTConfig
from transformers import PreTrainedModel

from bitrank import method, targets
from bitrank.adapter_config import OftAdapter
from bitrank.errors import UserError
from bitrank.method import Method, Tuned


class Oft(Method):
    copies_results = False  # it changes what comes in

    def attach(
        self, base: PreTrainedModel, adapter: OftAdapter, init_seed: int, original: Path
    ) -> Tuned:
        wanted = targets.find(base, adapter.target_modules, adapter.layers)
        for name, layer in wanted.items():
            if layer.in_features % adapter.block_size:
                raise UserError(
                    f"`adapter.block_size` {adapter.block_size} does not divide the "
                    f"{layer.in_features} inputs of {name}"
                )
        config = OFTConfig(
            task_type="CAUSAL_LM",
            r=0,  # as many as fill the inputs
            oft_block_size=adapter.block_size,
            use_cayley_neumann=True,
            num_cayley_neumann_terms=5,
            target_modules=targets.names_for_peft(base, wanted),
            bias="none",
        )
        return method.attach_with_peft(base, config, init_seed, wanted)

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        rotation: torch.Tensor = layer.get_delta_weight("default").detach().float()
        return weight @ rotation.t()

    def merge_bytes(self, layer: Any) -> int:
        """The rotation is one square matrix, made of its blocks in as much memory again."""
        square, size = layer.in_features**2, layer.in_features * layer.out_features
        return 4 * int(max(2 * square, square + size))

    def describe(self, model: Tuned) -> dict[str, Any]:
        layers = [layer for _, layer in self.adapted_layers(model)]
        return {
            **super().describe(model),
            "block_size": sorted({int(layer.oft_block_size["default"]) for layer in layers}),
        }


METHOD = Oft("oft")
