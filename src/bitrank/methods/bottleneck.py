"""Bottleneck adapters: two small layers with a bend between them behind a part of each block.

y + U f(D y + d) + u, where y is what the attention or the feed-forward part gives, before it is
added to the residual stream (Houlsby et al. 2019, section 2.1). U and u begin at zero, so an
untrained adapter changes nothing. The part's last linear layer carries it, as an object of PEFT's
LoRA layer with a forward pass of its own (`LoraVariant`): the places for the two small layers are
LoRA's, and so PEFT's checkpoints hold them; what is saved at the end is named for what it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraVariant
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bitrank import method, records, targets, weights
from bitrank.adapter_config import BottleneckAdapter
from bitrank.method import Method, Tuned

FILE, CONFIG = "bottleneck.safetensors", "bottleneck.json"
BENDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


class _Behind(LoraVariant):  # type: ignore[misc]
    """The two layers behind a linear one, which LoRA would put beside it."""

    def __init__(self, activation: str) -> None:
        self.activation = activation

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        bent = BENDS[self.activation](down(result.to(down.weight.dtype)))
        return cast(torch.Tensor, result + up(bent).to(result.dtype))


class Bottleneck(Method):
    not_merged = (
        "a bend lies between the small layers of a bottleneck: no weight of the base does the "
        "same; adapter=lora can be merged"
    )

    def attach(
        self, base: PreTrainedModel, adapter: BottleneckAdapter, init_seed: int, original: Path
    ) -> Tuned:
        wanted = _last_layers(base, adapter)
        return _insert(base, adapter.size, adapter.activation, wanted, init_seed)

    def save(self, model: Tuned, folder: Path, state: Mapping[str, torch.Tensor] | None) -> None:
        layers = dict(self.adapted_layers(model))
        first = next(iter(layers.values()))
        config = {
            "method": self.name,
            "size": first.lora_A["default"].out_features,
            "activation": first.lora_variant["default"].activation,
            "behind": list(layers),
        }
        folder.mkdir(parents=True, exist_ok=True)
        records.write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
        held = _own(model) if state is None else {name: state[name] for name in _own(model)}
        named = {_rename(name): t.detach().cpu().contiguous() for name, t in held.items()}
        save_file(named, folder / FILE, metadata={"format": "pt"})

    def load(self, base: PreTrainedModel, folder: Path) -> Tuned:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        linear = weights.linear_layers(base)
        wanted = {name: linear[name] for name in config["behind"]}
        model = _insert(base, config["size"], config["activation"], wanted, 0)
        saved = load_file(folder / FILE)
        for name, tensor in _own(model).items():
            tensor.data.copy_(saved[_rename(name)])
        return cast(Any, model.requires_grad_(False).eval())

    def describe(self, model: Tuned) -> dict[str, Any]:
        layers = [layer for _, layer in self.adapted_layers(model)]
        return {
            **super().describe(model),
            "size": sorted({layer.lora_A["default"].out_features for layer in layers}),
            "activation": sorted({layer.lora_variant["default"].activation for layer in layers}),
        }


def _last_layers(base: PreTrainedModel, adapter: BottleneckAdapter) -> dict[str, weights.Linear]:
    """The last linear layer of each wanted part of each wanted block: what it gives is the part's.

    Layers come in the order in which a module names them, which is that of their use in Llama,
    Qwen, Mistral and Falcon.
    """
    blocks = targets.find_blocks(base, adapter.layers)
    last: dict[tuple[int, str], str] = {}
    linear = weights.linear_layers(base)
    for name in linear:
        block = targets.block_of(name)
        for part in sorted(targets.groups_of(name) & set(adapter.after)):
            if block is not None and block in blocks:
                last[block, part] = name
    return {name: linear[name] for name in linear if name in set(last.values())}


def _insert(
    base: PreTrainedModel, size: int, activation: str, wanted: Mapping[str, Any], init_seed: int
) -> Any:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        lora_alpha=1,
        target_modules=targets.names_for_peft(base, wanted),
        init_lora_weights=False,
        bias="none",
    )
    model = method.attach_with_peft(base, config, init_seed, wanted)
    for _, layer in Method("bottleneck").adapted_layers(model):
        device = layer.lora_A["default"].weight.device
        width = layer.out_features
        down, up = (torch.nn.Linear(*shape) for shape in ((width, size), (size, width)))
        torch.nn.init.zeros_(down.bias)
        torch.nn.init.zeros_(up.weight)
        torch.nn.init.zeros_(up.bias)
        layer.lora_A["default"], layer.lora_B["default"] = down.to(device), up.to(device)
        layer.lora_variant["default"] = _Behind(activation)
    return model


def _own(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if weights.is_of_adapter(name)}


def _rename(name: str) -> str:
    """Of a tensor in PEFT's LoRA, by what it is here."""
    plain = name.removeprefix("base_model.model.")
    return plain.replace(".lora_A.default.", ".down.").replace(".lora_B.default.", ".up.")


METHOD = Bottleneck("bottleneck")
