"""Methods that begin with a part of the weight itself: W = (W - B0 A0) + B0 A0.

What is left, W - s * B0 A0, stays in the base and is frozen; B0 and A0 are trained. The base that
training sees is then another one. So that no adapter ever needs a base that is nowhere, the first
factors are kept, and what is saved is the whole change of the base that there is,

    s * B A - s * B0 A0 = s * [B, -B0] [A; A0],

an ordinary LoRA of twice the rank, whose base is the one that its stamp names. It computes what was
trained, up to rounding, in plain PEFT too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from bitrank import lora, method, processes
from bitrank.errors import UserError
from bitrank.lora import Lora
from bitrank.method import Tuned

Split: TypeAlias = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""(W, rank) to A0 of shape (rank, in) and B0 of shape (out, rank), with the scale in them."""
FIRST = ("lora_first_A", "lora_first_B")
STORED = (
    "s [B, -B0] [A; A0], a LoRA of twice the rank on the base itself; trained were A and B on "
    "the base less s B0 A0"
)


class Residual(Lora):
    merge_copies = 3  # what was taken, too

    def __init__(self, name: str, split: Split) -> None:
        super().__init__(name)
        self._split = split

    def begin(self, model: PeftModel, original: Path) -> None:
        if processes.are_sharding():
            raise UserError(
                f"`adapter.method` {self.name} rewrites the base's weights, which FSDP cuts up: "
                "take adapter=lora"
            )
        for _, layer in self.adapted_layers(model):
            weight = layer.get_base_layer().weight
            lora.set_factors(layer, *self._split(weight.data.float(), layer.r["default"]))
            for name, factor in zip(FIRST, lora.factors(layer), strict=True):
                layer.register_buffer(name, factor.clone(), persistent=False)
            taken = torch.mul(layer.lora_first_B @ layer.lora_first_A, layer.scaling["default"])
            weight.data = (weight.data.float() - taken).to(weight.dtype)

    def save(self, model: Tuned, folder: Path, state: Mapping[str, torch.Tensor] | None) -> None:
        """Write a LoRA of twice the rank; see above."""
        own = get_peft_model_state_dict(model, state_dict=state)
        for name, layer in self.adapted_layers(model):
            a, b = (f"base_model.model.{name}.lora_{end}.weight" for end in "AB")
            own[a] = torch.cat([own[a], layer.lora_first_A])
            own[b] = torch.cat([own[b], -layer.lora_first_B], dim=1)
        config: Any = deepcopy(model.peft_config["default"])
        # alpha / rank is to be the same scale, whatever it was computed from.
        (scale,) = {float(layer.scaling["default"]) for _, layer in self.adapted_layers(model)}
        config.r, config.lora_alpha, config.use_rslora = 2 * config.r, scale * 2 * config.r, False
        config.inference_mode = True
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        tensors = {name: held.detach().cpu().contiguous() for name, held in own.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        method.make_repeatable(folder)

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        """`weight` is the base's, of which nothing was taken."""
        updated = super().merged_weight(layer, weight)
        if not hasattr(layer, FIRST[0]):  # loaded: the factors that were taken are in the LoRA
            return updated
        taken = torch.mul(layer.lora_first_B @ layer.lora_first_A, layer.scaling["default"])
        return updated - taken

    def describe(self, model: Tuned) -> dict[str, Any]:
        layers = dict(self.adapted_layers(model))
        if not any(hasattr(layer, FIRST[0]) for layer in layers.values()):
            return {**super().describe(model), "residual_hash": None, "stored_as": STORED}
        left = ((name, layer.get_base_layer().weight.data) for name, layer in layers.items())
        return {
            **super().describe(model),
            "residual_hash": method.hash_tensors(left),
            "stored_as": STORED,
        }


def split_by_values(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest `rank` singular values, half of each in both factors (PiSSA)."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank].sqrt()
    return root.unsqueeze(1) * right[:rank], left[:, :rank] * root


def split_by_rows(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `rank` orthonormal columns of a QR decomposition with their rows (OLoRA)."""
    columns, rows = torch.linalg.qr(weight)
    return rows[:rank], columns[:, :rank]
