"""What a method is: what it adds to a base, what that is in the live model, how it is saved, and
which weight does the same, where there is one.

Here stands what PEFT does for all of its methods; `bitrank.methods` has one module for each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from bitrank import environment, identity, records, targets, weights

Tuned: TypeAlias = PeftModel | PreTrainedModel
CONFIG = "adapter_config.json"


class Method:
    """A method that PEFT has; where one differs it overrides."""

    not_merged: str | None = None
    """Why no plain model does what base and adapter do; None where one does."""
    merge_copies = 2
    """Tensors of a layer's size that `merged_weight` holds at once: the update and the sum."""
    copies_results = True
    """Whether PEFT copies what a 4-bit layer gives before it adds to it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def attach(self, base: PreTrainedModel, adapter: Any, init_seed: int, original: Path) -> Tuned:
        """Add what is trained to `base`; `original` holds its weights before quantization."""
        raise NotImplementedError

    def load(self, base: PreTrainedModel, folder: Path) -> Tuned:
        """Add what was saved to `base`, frozen."""
        return PeftModel.from_pretrained(base, str(folder), is_trainable=False).eval()

    def save(self, model: Tuned, folder: Path, state: Mapping[str, torch.Tensor] | None) -> None:
        """Write as PEFT does; `state` holds all weights where `model` has only a part of them."""
        cast(Any, model).save_pretrained(str(folder), safe_serialization=True, state_dict=state)
        make_repeatable(folder)

    def adapted_layers(self, model: Tuned) -> Iterator[tuple[str, Any]]:
        """(name in the base model, layer) of each layer whose weight changes, in order."""
        for name, module in model.named_modules():
            if isinstance(module, BaseTunerLayer):
                yield name.removeprefix("base_model.model."), module

    def merged_weight(self, layer: Any, weight: torch.Tensor) -> torch.Tensor:
        """The one weight that does what `weight` and the adapter do; both fp32, (out, in)."""
        raise NotImplementedError

    def merge_bytes(self, layer: Any) -> int:
        """Of the fp32 tensors that `merged_weight` holds at once."""
        return self.merge_copies * 4 * int(layer.in_features * layer.out_features)

    def merged_bias(self, layer: Any, bias: torch.Tensor) -> torch.Tensor:
        """What becomes of the layer's bias; fp32, (out). Mostly nothing."""
        return bias

    def first_weights(self, model: Tuned) -> Iterator[tuple[str, torch.Tensor]]:
        """What the seed decided: each tensor with a name."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def describe(self, model: Tuned) -> dict[str, Any]:
        """What is trainable in the live model: the proof of treatment."""
        layers = dict(self.adapted_layers(model))
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        own = [p for name, p in model.named_parameters() if weights.is_of_adapter(name)]
        blocks = {targets.block_of(name) for name in layers} - {None}
        return {
            "method": self.name,
            "num_adapted_layers": len(layers),
            "target_modules": sorted({targets.end_of(name) for name in layers}),
            "blocks": sorted(cast("set[int]", blocks)),
            "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in own}),
            "num_trainable_parameters": sum(p.numel() for p in trainable.values()),
            "trainable_outside_adapter": sorted(
                name for name in trainable if not weights.is_of_adapter(name)
            ),
        }

    def describe_setting(self, adapter: Any) -> dict[str, Any]:
        """What was asked for and shows in no live number."""
        return {}


def attach_with_peft(
    base: PreTrainedModel, config: PeftConfig, init_seed: int, wanted: Mapping[str, Any]
) -> PeftModel:
    """PEFT's model, whose first weights the seed decides; `wanted` are the layers by name."""
    environment.seed_everything(init_seed)
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    found = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    if found != set(wanted):
        raise RuntimeError(f"PEFT adapted other layers than {sorted(wanted)}")
    return model


def make_repeatable(folder: Path) -> None:
    """PEFT writes names from sets, in another order each time, and the base's absolute path: both
    are put right, so that equal adapters are equal folders.
    """
    file = folder / CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    for key in ("base_model_name_or_path", "tokenizer_name_or_path"):
        if key in config:
            config[key] = None
    records.write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def hash_tensors(named: Iterator[tuple[str, torch.Tensor]]) -> str | None:
    """One hash of all; None where there are none."""
    hashes = [[name, identity.hash_tensor(tensor)] for name, tensor in named]
    return identity.hash_json(hashes) if hashes else None
