"""Adapters, from attaching to merging, whatever the method.

`adapter.method` names a module of `bitrank.methods`, which does what is particular to it; here
stands what all have in common: the seed before the first weights, the stamp and the check beside
what is saved, and the questions that every stage asks of a live model. Adapter weights are fp32
whatever the base is, in every precision, so that runs differ in the base's precision only. PEFT's
`prepare_model_for_kbit_training` is not used: it turns checkpointing on and casts norms behind the
user's back.

Full fine-tuning passes through the same functions; its "adapter" is the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from bitrank import chain, full_tuning, methods, paths, targets, weights
from bitrank.adapter_config import AdapterConfig
from bitrank.chain import Stamp
from bitrank.method import Method, hash_tensors
from bitrank.method import Tuned as Tuned

block_of = targets.block_of


def attach_adapter(
    base: PreTrainedModel, adapter: AdapterConfig, init_seed: int, original: Path = paths.ORIGINAL
) -> Tuned:
    """Return `base` with a fresh adapter, the only thing in it that is trainable.

    The seed is set immediately before the first weights are drawn.

    Raises:
        UserError: a target module or block that the base does not have, or a size that does not fit
            a layer's.
    """
    return _mark(methods.of(adapter.method).attach(base, adapter, init_seed, original),
                 adapter.method)  # fmt: skip


def _mark(model: Tuned, name: str) -> Tuned:
    vars(model)["tuned_by"] = name
    return model


def method_of(model: Tuned) -> Method:
    """Of a model that was made here; of others by their kind."""
    kind = "lora" if isinstance(model, PeftModel) else "full"
    return methods.of(vars(model).get("tuned_by", kind))


def save_adapter(
    model: Tuned, folder: Path, stamp: Stamp, state: Mapping[str, torch.Tensor] | None = None
) -> str:
    """Write the adapter with its stamp; return the hash of its weights.

    `state` holds the model's weights where `model` itself has only this rank's part of them.
    """
    method = method_of(model)
    method.save(model, folder, state)
    return chain.seal_adapter(folder, replace(stamp, method=method.name))


def load_adapter(base: PreTrainedModel, folder: Path, base_hash: str) -> Tuned:
    """Attach a saved adapter, frozen, to the base that it was trained on.

    Raises:
        UserError: the adapter belongs to another base, or was changed after training.
    """
    chain.check_adapter(folder, base_hash)
    name = saved_method(folder)
    return _mark(methods.of(name).load(base, folder), name)


def saved_method(folder: Path) -> str:
    """The method of a saved adapter; of an older bitrank's by what it left."""
    older = "full" if full_tuning.is_saved_in(folder) else "lora"
    return chain.read_stamp(folder).method or older


def why_not_merged(folder: Path) -> str | None:
    """Why no plain model does what a saved adapter does beside its base; None where one does."""
    return methods.of(saved_method(folder)).not_merged


def adapted_layers(model: Tuned) -> Iterator[tuple[str, Any]]:
    """(name in the base model, layer) of each adapted layer, in the model's order."""
    return method_of(model).adapted_layers(model)


def describe_adapter(model: Tuned) -> dict[str, Any]:
    """What is trainable in the live model: the proof of treatment."""
    return method_of(model).describe(model)


def describe_setting(adapter: AdapterConfig) -> dict[str, Any]:
    """What was asked for and shows in no live number."""
    return methods.of(adapter.method).describe_setting(adapter)


def trainable_share(model: Tuned) -> float:
    """Trainable parameters over those of base and adapter together."""
    own = sum(p.numel() for name, p in model.named_parameters() if weights.is_of_adapter(name))
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    live = describe_adapter(model)["num_trainable_parameters"]
    return float(live / (own + weights.count_weights(base)))


def hash_first_weights(model: Tuned) -> str | None:
    """One hash of what the seed decided: equal at the start of runs with the same init seed.

    None for full fine-tuning, which draws nothing.
    """
    return hash_tensors(method_of(model).first_weights(model))
