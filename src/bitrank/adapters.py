"""Adapters, from attaching to merging: the one door to PEFT.

The update of a layer is W + s * B A, with A of shape (rank, in), B of shape (out, rank) and s of
alpha / rank, or alpha / sqrt(rank) with rsLoRA; A is random and B is zero at the start, so an
untrained adapter changes nothing (Hu et al. 2021, section 4.1). DoRA gives each row of the updated
weight a trained length m of its own: m * (W + s * B A) / ||W + s * B A||, where m starts at ||W||
(Liu et al. 2024, equation 5). Adapter weights are fp32 whatever the base is, in every precision, so
that runs differ in the base's precision only. PEFT's `prepare_model_for_kbit_training` is not used:
it turns checkpointing on and casts norms behind the user's back.

Full fine-tuning passes through the same functions; its "adapter" is the whole model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from bitrank import chain, environment, full_tuning, identity, processes, records, weights
from bitrank.chain import Stamp
from bitrank.errors import UserError
from bitrank.low_rank import FusedLora
from bitrank.tuning import LAST, AdapterConfig, FullAdapter, LoraAdapter

GROUPS = ("all-linear", "attention", "feed-forward")
Tuned: TypeAlias = PeftModel | PreTrainedModel


def attach_adapter(base: PreTrainedModel, adapter: AdapterConfig, init_seed: int) -> Tuned:
    """Return `base` with a fresh adapter, the only thing in it that is trainable.

    The seed is set here, immediately before the random A is drawn.

    Raises:
        UserError: a target module or block that the base does not have, or a rank above a layer's
            size.
    """
    if isinstance(adapter, FullAdapter):
        environment.seed_everything(init_seed)
        return full_tuning.unfreeze(base)
    targets = _target_layers(base, adapter)
    for name, layer in targets.items():
        if adapter.rank > min(layer.in_features, layer.out_features):
            raise UserError(
                f"`adapter.rank` {adapter.rank} is above the size of {name}, which is "
                f"{layer.out_features} x {layer.in_features}"
            )
    names = _names_for_peft(base, targets)
    environment.seed_everything(init_seed)
    model = get_peft_model(base, _to_peft(adapter, names), autocast_adapter_dtype=True)
    if {name for name, _ in lora_layers(model)} != set(targets):
        raise RuntimeError(f"PEFT adapted other layers than {sorted(targets)}")
    if not processes.are_sharding():  # FSDP gathers a weight for its own layer's forward pass only
        _fuse(model)
    return model


def _fuse(model: PeftModel) -> None:
    """Compute plain LoRA in one operation; DoRA and other variants stay PEFT's own."""
    for _, layer in lora_layers(model):
        layer.lora_variant.setdefault("default", FusedLora())


def _to_peft(adapter: LoraAdapter, names: list[str]) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_dora=adapter.use_dora,
        use_rslora=adapter.use_rslora,
        target_modules=names,
        bias="none",
    )


def _target_layers(base: PreTrainedModel, adapter: LoraAdapter) -> dict[str, weights.Linear]:
    layers = weights.linear_layers(base)
    blocks = _wanted_blocks({block_of(name) for name in layers} - {None}, adapter.layers)
    known = sorted({_end(name) for name in layers})
    unknown = [t for t in adapter.target_modules if t not in known and t not in GROUPS]
    if unknown:
        raise UserError(
            f"`adapter.target_modules`: the base has no {', '.join(unknown)}; it has "
            f"{', '.join(known)}, and the groups {', '.join(GROUPS)}"
        )
    chosen = {
        name: layer
        for name, layer in layers.items()
        if {_end(name), *_groups_of(name)} & set(adapter.target_modules)
        and (adapter.layers is None or block_of(name) in blocks)
    }
    if not chosen:
        raise UserError(
            f"`adapter.target_modules` {adapter.target_modules} and `adapter.layers` "
            f"{adapter.layers} choose no layer; the base has {', '.join(known) or 'no linear ones'}"
        )
    return chosen


def _wanted_blocks(blocks: set[int | None], wanted: list[int] | str | None) -> set[int | None]:
    """Raises UserError: a block that the base does not have."""
    if wanted is None:
        return blocks
    count = len(blocks)
    if isinstance(wanted, str):
        last = LAST.fullmatch(wanted)
        asked = int(last.group(1)) if last else 0
        if not 1 <= asked <= count:
            raise UserError(f"`adapter.layers` is {wanted!r}, the base has {count} blocks")
        return set(range(count - asked, count))
    beyond = sorted(set(wanted) - blocks)
    if beyond:
        raise UserError(
            f"`adapter.layers` names {', '.join(map(str, beyond))}, the base's blocks are 0 to "
            f"{count - 1}"
        )
    return set(wanted)


def _end(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def block_of(name: str) -> int | None:
    """Number of the block that a layer lies in: the first one in its name; None outside of all."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else None


def _groups_of(name: str) -> set[str]:
    """In a block, what does not lie in a part with "attn" or "attention" in its name feeds forward.

    So it is in Llama, Qwen and Mistral (`self_attn`, `mlp`), Falcon (`self_attention`, `mlp`),
    GPT-NeoX (`attention`, `mlp`) and OPT (`self_attn`, `fc1`, `fc2`).
    """
    if re.search(r"attn|attention", name):
        return {"all-linear", "attention"}
    return {"all-linear", "feed-forward"} if block_of(name) is not None else {"all-linear"}


def _names_for_peft(base: PreTrainedModel, targets: Mapping[str, weights.Linear]) -> list[str]:
    """The ends of the names where they mean just these layers, and the whole names otherwise."""
    ends = {_end(name) for name in targets}
    reached = {name for name, _ in base.named_modules() if _end(name) in ends}
    return sorted(ends if reached == set(targets) else targets)


def save_adapter(
    model: Tuned, folder: Path, stamp: Stamp, state: Mapping[str, torch.Tensor] | None = None
) -> str:
    """Write the adapter as PEFT does, with its stamp; return the hash of its weights.

    `state` holds the model's weights where `model` itself has only this rank's part of them.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), safe_serialization=True, state_dict=state)
        _make_repeatable(folder)
    else:
        full_tuning.save(model, folder, state)
    return chain.seal_adapter(folder, stamp)


def _make_repeatable(folder: Path) -> None:
    """PEFT writes `target_modules` from a set, in another order each time, and the base's absolute
    path: both are put right, so that equal adapters are equal folders.
    """
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = None
    records.write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def load_adapter(base: PreTrainedModel, folder: Path, base_hash: str) -> Tuned:
    """Attach a saved adapter, frozen, to the base that it was trained on.

    Raises:
        UserError: the adapter belongs to another base, or was changed after training.
    """
    chain.check_adapter(folder, base_hash)
    if full_tuning.is_saved_in(folder):
        return full_tuning.load(base, folder)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=False).eval()
    _fuse(model)
    return model


def lora_layers(model: torch.nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(name in the base model, layer) of each adapted layer, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix("base_model.model."), module


def merged_weight(layer: LoraLayer, weight: torch.Tensor) -> torch.Tensor:
    """The one weight that does what `weight` and the adapter do; both fp32, of shape (out, in)."""
    a = layer.lora_A["default"].weight.detach().float()
    b = layer.lora_B["default"].weight.detach().float()
    updated: torch.Tensor = weight + torch.mul(b @ a, float(layer.scaling["default"]))
    if "default" not in layer.lora_magnitude_vector:
        return updated
    length: torch.Tensor = layer.lora_magnitude_vector["default"].weight.detach().float()
    factor: torch.Tensor = length / torch.linalg.vector_norm(updated, dim=1)
    return factor.unsqueeze(1) * updated


def describe_adapter(model: Tuned) -> dict[str, Any]:
    """What is trainable in the live model: the proof of treatment."""
    if not isinstance(model, PeftModel):
        return full_tuning.describe(model)
    layers = dict(lora_layers(model))
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    first = [layer.lora_A["default"].weight for layer in layers.values()]
    return {
        "method": "lora",
        "num_adapted_layers": len(layers),
        "target_modules": sorted({_end(name) for name in layers}),
        "blocks": sorted({block for name in layers if (block := block_of(name)) is not None}),
        "rank": sorted({int(layer.r["default"]) for layer in layers.values()}),
        "scaling": sorted({float(layer.scaling["default"]) for layer in layers.values()}),
        "use_dora": sorted({"default" in x.lora_magnitude_vector for x in layers.values()}),
        "dtypes": sorted({str(a.dtype).removeprefix("torch.") for a in first}),
        "num_trainable_parameters": sum(p.numel() for p in trainable.values()),
        "trainable_outside_adapter": sorted(n for n in trainable if "lora_" not in n),
    }


def describe_setting(adapter: AdapterConfig) -> dict[str, Any]:
    """What was asked for and shows in no live number."""
    if isinstance(adapter, FullAdapter):
        return {}
    return {
        "alpha_per_rank": adapter.alpha_per_rank,
        "alpha_per_sqrt_rank": adapter.alpha_per_sqrt_rank,
        "dropout": adapter.dropout,
        "use_rslora": adapter.use_rslora,
    }


def trainable_share(model: Tuned) -> float:
    """Trainable parameters over those of base and adapter together."""
    own = sum(p.numel() for name, p in model.named_parameters() if weights.ADAPTER in name)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    live = describe_adapter(model)["num_trainable_parameters"]
    return float(live / (own + weights.count_weights(base)))


def hash_first_weights(model: Tuned) -> str | None:
    """One hash of all A matrices: equal at the start of runs with the same init seed.

    None for full fine-tuning, which draws none.
    """
    firsts = [[name, identity.hash_tensor(layer.lora_A["default"].weight)]
              for name, layer in lora_layers(model)]  # fmt: skip
    return identity.hash_json(firsts) if firsts else None
