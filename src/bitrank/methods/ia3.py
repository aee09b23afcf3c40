"""IA3: one trained factor for each output, or each input, of some layers (Liu et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import IA3Config
from transformers import PreTrainedModel

from bitrank import method, targets
from bitrank.adapter_config import Ia3Adapter
from bitrank.method import Method, Tuned


class Ia3(Method):
    merge_copies = 1

    def attach(
        self, base: PreTrainedModel, adapter: Ia3Adapter, init_seed: int, original: Path
    ) -> Tuned:
        wanted = targets.find(base, adapter.target_modules, adapter.layers)
        scaled = targets.find(base, adapter.scaled_inputs, adapter.layers) if (
            adapter.scaled_inputs
        ) else {}  # fmt: skip
        config = IA3Config(
            task_type="CAUSAL_LM",
            # whole names: PEFT would read an end among the one and not among the other
            target_modules=sorted(wanted),
            feedforward_modules=sorted(scaled),
        )
        return method.attach_with_peft(base, config, init_seed, wanted)

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        factor: torch.Tensor = layer.ia3_l["default"].detach().float()
        return weight * factor  # (1, in) or (out, 1)

    def merged_bias(self, layer: Any, bias: torch.Tensor) -> torch.Tensor:
        if layer.is_feedforward:
            return bias
        factor: torch.Tensor = layer.ia3_l["default"].detach().float()
        return bias * factor.flatten()

    def describe(self, model: Tuned) -> dict[str, Any]:
        layers = list(self.adapted_layers(model))
        return {
            **super().describe(model),
            "scaled_inputs": sorted(
                {targets.end_of(name) for name, layer in layers if layer.is_feedforward}
            ),
        }


METHOD = Ia3("ia3")
