"""LoRA adapters: the one door to PEFT.

The update of a layer is W + (alpha / rank) * B A, with A of shape (rank, in) and B of shape
(out, rank); A is random and B is zero at the start, so an untrained adapter changes nothing
(Hu et al. 2021, section 4.1). Adapter weights are fp32 whatever the base is, in every precision,
so that runs differ in the base's precision only. PEFT's `prepare_model_for_kbit_training` is not
used: it turns checkpointing on and casts norms behind the user's back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from bitrank import environment, identity, records, weights
from bitrank.config import AdapterConfig
from bitrank.errors import UserError
from bitrank.low_rank import FusedLora

STAMP = "bitrank.json"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What an adapter belongs to; travels with it, and is checked wherever it is used."""

    base_hash: str
    data_hash: str


def attach_adapter(base: PreTrainedModel, adapter: AdapterConfig, init_seed: int) -> PeftModel:
    """Return `base` with a fresh adapter, the only thing in it that is trainable.

    The seed is set here, immediately before the random A is drawn.

    Raises:
        UserError: a target module that the base does not have, or a rank above a layer's size.
    """
    targets = _target_layers(base, adapter.target_modules)
    for name, layer in targets.items():
        if adapter.rank > min(layer.in_features, layer.out_features):
            raise UserError(
                f"`adapter.rank` {adapter.rank} is above the size of {name}, which is "
                f"{layer.out_features} x {layer.in_features}"
            )
    environment.seed_everything(init_seed)
    model = get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.rank,
            lora_alpha=adapter.alpha_per_rank * adapter.rank,
            lora_dropout=adapter.dropout,
            target_modules=sorted({name.rsplit(".", 1)[-1] for name in targets}),
            bias="none",
        ),
        autocast_adapter_dtype=True,
    )
    for _, layer in lora_layers(model):
        layer.lora_variant.setdefault("default", FusedLora())
    return model


def _target_layers(base: PreTrainedModel, wanted: list[str]) -> dict[str, weights.Linear]:
    layers = weights.linear_layers(base)
    if wanted == ["all-linear"]:
        return layers
    ends = sorted({name.rsplit(".", 1)[-1] for name in layers})
    unknown = [target for target in wanted if target not in ends]
    if unknown:
        raise UserError(
            f"`adapter.target_modules`: the base has no {', '.join(unknown)}; it has "
            f"{', '.join(ends)}"
        )
    return {name: layer for name, layer in layers.items() if name.rsplit(".", 1)[-1] in wanted}


def save_adapter(model: PeftModel, folder: Path, stamp: Stamp) -> str:
    """Write the adapter as PEFT does, with its stamp; return the hash of its weights.

    PEFT writes `target_modules` from a set, in another order each time, and the base's absolute
    path: both are put right, so that equal adapters are equal folders.
    """
    model.save_pretrained(str(folder), safe_serialization=True)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = None
    records.write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)
    records.write_text(folder / STAMP, records.canonical_json(asdict(stamp)) + "\n")
    return identity.hash_weights(folder)


def load_adapter(base: PreTrainedModel, folder: Path, base_hash: str) -> PeftModel:
    """Attach a saved adapter, frozen, to the base that it was trained on.

    Raises:
        UserError: the adapter belongs to another base.
    """
    stamp = read_stamp(folder)
    if stamp.base_hash != base_hash:
        raise UserError(
            f"{folder} was trained on the base {stamp.base_hash[:12]}, this one is "
            f"{base_hash[:12]}: `dvc repro` brings them together"
        )
    return PeftModel.from_pretrained(base, str(folder), is_trainable=False).eval()


def read_stamp(folder: Path) -> Stamp:
    """Raises UserError: the folder holds no adapter of bitrank's."""
    file = folder / STAMP
    if not file.is_file():
        raise UserError(f"{folder} holds no adapter with a {STAMP}; `dvc repro train` makes one")
    return Stamp(**json.loads(file.read_text(encoding="utf-8")))


def lora_layers(model: torch.nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(name in the base model, layer) of each adapted layer, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def delta(layer: LoraLayer) -> torch.Tensor:
    """(alpha / rank) * B A in fp32, of shape (out, in)."""
    a = layer.lora_A["default"].weight.detach().float()
    b = layer.lora_B["default"].weight.detach().float()
    return torch.mul(b @ a, float(layer.scaling["default"]))


def describe_adapter(model: PeftModel) -> dict[str, Any]:
    """What is trainable in the live model: the proof of treatment."""
    layers = dict(lora_layers(model))
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    first = [layer.lora_A["default"].weight for layer in layers.values()]
    return {
        "method": "lora",
        "num_adapted_layers": len(layers),
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in layers}),
        "rank": sorted({int(layer.r["default"]) for layer in layers.values()}),
        "scaling": sorted({float(layer.scaling["default"]) for layer in layers.values()}),
        "dtypes": sorted({str(a.dtype).removeprefix("torch.") for a in first}),
        "num_trainable_parameters": sum(p.numel() for p in trainable.values()),
        "trainable_outside_adapter": sorted(n for n in trainable if "lora_" not in n),
    }


def hash_first_weights(model: PeftModel) -> str:
    """One hash of all A matrices: equal at the start of runs with the same init seed."""
    firsts = ((name, layer.lora_A["default"].weight) for name, layer in lora_layers(model))
    return identity.hash_json([[name, identity.hash_tensor(first)] for name, first in firsts])
