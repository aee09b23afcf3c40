"""The proof of treatment: what a live model is, in the words that every record uses.

Training, measurement and evaluation call the one function here, so that what they tell can be laid
side by side. Nothing in it comes from the configuration, apart from names and settings that no
live number shows, which stand under keys of their own.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from bitrank import full_tuning, identity, weights
from bitrank.adapter_config import AdapterConfig
from bitrank.config import PrecisionConfig


def describe(
    model: Any, precision: PrecisionConfig | None = None, adapter: AdapterConfig | None = None
) -> dict[str, Any]:
    """The treatment part of a record, read from a base model or from one with an adapter.

    To be called before an evaluation dequantizes the base: what is told is how it is held. With
    `precision` and `adapter`, what was asked for and shows in no live number stands beside it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    held = weights.describe_precision(base)
    return {
        "precision": held if precision is None else {"name": precision.name, **held},
        "dtypes": _describe_types(base, model),
        "adapter": _describe_adapter(model, adapter),
        "trainable": _describe_trainable(model),
        "gradient_checkpointing": bool(base.is_activation_checkpointing),
        "attention": base.config._attn_implementation,
    }


def _describe_types(base: Any, model: Any) -> dict[str, Any]:
    """Types of what quantization leaves alone, and of the adapter."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    norms = [
        parameter
        for module in base.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    ]
    own = [held for name, held in model.named_parameters() if weights.is_of_adapter(name)]
    return {
        "adapter": _types(own),
        "norms": _types(norms),
        "embeddings": _types([embeddings.weight]),
        "head": _types([head.weight]),
        "head_is_embeddings": head.weight is embeddings.weight,
    }


def _describe_adapter(model: Any, adapter: AdapterConfig | None) -> dict[str, Any] | None:
    """Null for a base that nothing was added to, and of which nothing is trained."""
    if not hasattr(model, "get_base_model"):
        trained = any(parameter.requires_grad for parameter in model.parameters())
        return full_tuning.describe(model) if trained else None
    from bitrank import adapters  # PEFT takes seconds to import, for the models that need it

    asked = {} if adapter is None else adapters.describe_setting(adapter)
    return {**adapters.describe_adapter(model), **asked}


def _describe_trainable(model: Any) -> dict[str, Any]:
    """What a gradient is computed for; the names with their numbers left out, and a hash of all."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {
        "num_tensors": len(named),
        "num_parameters": sum(parameter.numel() for parameter in named.values()),
        "names": sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in named}),
        "names_hash": identity.hash_json(sorted(named)) if named else None,
        "dtypes": _types(list(named.values())),
    }


def _types(parameters: list[torch.Tensor]) -> list[str]:
    return sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
