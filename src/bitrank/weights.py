"""How a model's linear layers hold their weights: the one door to bitsandbytes.

Quantizing, dequantizing, and the proof of treatment: what is told of a precision is read from the
live layers, and what is not held as configured is an error.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast

import bitsandbytes
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from bitrank import models
from bitrank.config import PrecisionConfig
from bitrank.errors import UserError

Linear: TypeAlias = torch.nn.Linear
"""Plain, `Linear4bit` and `Linear8bitLt` alike: the quantized ones are its subclasses."""

ADAPTER = re.compile(r"(^|\.)(lora_|ia3_|vera_|oft_|prompt_encoder\.)")
"""What marks an adapter's own modules and tensors in a model: they are not the base."""


def is_of_adapter(name: str) -> bool:
    """Whether a module or tensor of this name was added to the base."""
    return ADAPTER.search(name) is not None


def adapter_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """What was added to the base: parameters, and frozen tensors beside them."""
    named = chain(model.named_parameters(), model.named_buffers())
    return [held for name, held in named if is_of_adapter(name)]


def quantize_model(
    folder: Path, precision: PrecisionConfig, device: torch.device
) -> PreTrainedModel:
    """The model of `folder`, which holds the original weights, in the configured precision.

    At block size 64, the only one that transformers knows; `set_block_size` makes another one.
    """
    models.build_of_plain_layers(folder)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.abspath(folder),
        dtype=getattr(torch, precision.weight_dtype),
        device_map={"": device},
        attn_implementation=models.ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=_to_bitsandbytes(precision),
    )
    return models.frozen(model)


def set_block_size(
    model: PreTrainedModel, original: PreTrainedModel, precision: PrecisionConfig
) -> None:
    """Quantize 4-bit layers anew with `precision.block_size`; the checkpoint will carry it."""
    if precision.block_size in (None, 64):
        return
    dtype = getattr(torch, precision.weight_dtype)
    before = linear_layers(original)
    for name, layer in linear_layers(model).items():
        if isinstance(layer, Linear4bit):
            weight = before[name].weight.data.to(layer.weight.device, dtype)
            layer.weight = Params4bit(
                weight.contiguous(),
                requires_grad=False,
                quant_type=layer.weight.quant_type,
                compress_statistics=layer.weight.compress_statistics,
                quant_storage=layer.weight.quant_storage,
                blocksize=precision.block_size,
                module=layer,
            ).to(weight.device)


def _to_bitsandbytes(precision: PrecisionConfig) -> BitsAndBytesConfig | None:
    if precision.quant_type is None:
        return None
    if precision.quant_type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=precision.quant_type,
        bnb_4bit_use_double_quant=precision.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, precision.compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, precision.quant_storage or "uint8"),
    )


def linear_layers(model: PreTrainedModel) -> dict[str, Linear]:
    """The linear layers inside the blocks, by name: what is quantized and what gets an adapter."""
    head = model.get_output_embeddings()
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not is_of_adapter(name)
    }


def dequantized_weight(layer: Linear) -> torch.Tensor:
    """The weight that the layer stands for, in fp32, whatever holds it; shape (out, in)."""
    if isinstance(layer, Linear4bit):
        full = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return cast(torch.Tensor, full).float()
    if isinstance(layer, Linear8bitLt):
        codes: torch.Tensor = layer.weight.data
        return codes.float() * (int8_scale(layer).float().view(-1, 1) / 127)
    plain: torch.Tensor = layer.weight.data
    return plain.float()


def quantized_bytes(layer: Linear) -> int | None:
    """Bytes of a quantized layer's codes and scales; None for a plain layer.

    The constant code books are not counted, as in Dettmers et al. 2023, section 3.
    """
    held: list[torch.Tensor]
    if isinstance(layer, Linear4bit):
        state = layer.weight.quant_state
        nested = [state.state2.absmax] if state.nested else []
        held = [layer.weight.data, state.absmax, *nested]
    elif isinstance(layer, Linear8bitLt):
        held = [layer.weight.data, int8_scale(layer)]
    else:
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def int8_scale(layer: Linear8bitLt) -> torch.Tensor:
    """The scale of each row, shape (out,); the first forward pass moves it off the weight."""
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return cast(torch.Tensor, scale)


def dequantize_model(model: PreTrainedModel) -> PreTrainedModel:
    """Replace each quantized layer by a plain one, in the model's own weight type."""
    if getattr(model, "is_quantized", False):
        # The type is named because transformers' default breaks after a save (it becomes text).
        model = model.dequantize(dtype=model.get_input_embeddings().weight.dtype)
        # What undoes the quantizer's renaming on saving has no business in a plain model.
        vars(model).pop("_weight_conversions", None)
    return models.frozen(model)


def missing_kernel(model: PreTrainedModel) -> str | None:
    """Why inference in the precision of `model` has no kernel of its own here; null where it has.

    Plain layers and CUDA always have one. On a CPU bitsandbytes 0.50 has one for 4 bits where there
    is AVX512-BF16, and for 8 bits where there is AVX-512; elsewhere it dequantizes.
    """
    layers = list(linear_layers(model).values())
    four = any(isinstance(layer, Linear4bit) for layer in layers)
    eight = any(isinstance(layer, Linear8bitLt) for layer in layers)
    if not (four or eight) or model.device.type != "cpu":
        return None
    native = (
        bitsandbytes.functional.has_avx512bf16()
        if four
        else "AVX512" in torch.backends.cpu.get_cpu_capability()
    )
    if native:
        return None
    return (
        f"bitsandbytes has no kernel for {4 if four else 8}-bit products on this CPU: it "
        "dequantizes the whole weight at each call, whose time tells nothing of inference in this "
        "precision; to serve here, merge"
    )


def count_weights(model: PreTrainedModel) -> int:
    """Parameters of the base, a packed 4-bit element counted as the weights that it holds."""
    layers = linear_layers(model)
    inside = {id(layer.weight) for layer in layers.values()}
    linear: int = sum(layer.in_features * layer.out_features for layer in layers.values())
    others: int = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and not is_of_adapter(name)
    )
    return linear + others


@contextmanager
def evaluating_as_trained(model: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout, but quantized layers compute as they do in training.

    In evaluation int8 layers quantize activations too, and 4-bit layers on a CPU with AVX512-BF16
    repack their weights for good; neither belongs into a look at the validation loss.
    """
    was_training = model.training
    model.eval()
    for layer in model.modules():
        if isinstance(layer, Linear4bit | Linear8bitLt):
            layer.train()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def describe_precision(model: PreTrainedModel) -> dict[str, Any]:
    """How the live model holds its weights: the proof of treatment of every record."""
    layers = linear_layers(model)
    four = [m.weight for m in layers.values() if isinstance(m, Linear4bit)]
    eight = [m for m in layers.values() if isinstance(m, Linear8bitLt)]
    held: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if not is_of_adapter(name):
            held[_name(parameter.dtype)] += parameter.numel()
    types = sorted({w.quant_type for w in four} | ({"int8"} if eight else set()))
    return {
        "num_linear_layers": len(layers),
        "num_quantized_layers": len(four) + len(eight),
        "quant_types": types,
        "double_quant": sorted({bool(w.quant_state.nested) for w in four}),
        "block_sizes": sorted({int(w.quant_state.blocksize) for w in four}),
        "compute_dtypes": sorted(
            {_name(m.compute_dtype) for m in layers.values() if isinstance(m, Linear4bit)}
        ),
        "quant_storage": sorted({_name(w.dtype) for w in four}),
        "stored_elements_by_dtype": dict(sorted(held.items())),
    }  # fmt: skip


def load_base(folder: Path, precision: PrecisionConfig, device: torch.device) -> PreTrainedModel:
    """Load a base that is held as configured.

    Raises:
        UserError: it is not; the first such layer is named.
    """
    model = models.load_model(folder, device)
    check_precision(model, precision)
    return model


def check_precision(model: PreTrainedModel, precision: PrecisionConfig) -> None:
    """Raises UserError: a module is not held as configured; the first such module is named."""
    for name, layer in linear_layers(model).items():
        held, wanted = _how_held(layer), _how_wanted(layer, precision)
        _compare_held(name, held, wanted)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if any(module is end for end in ends):
            held = {"weight_dtype": _name(module.weight.dtype)}
            _compare_held(name, held, {"weight_dtype": precision.weight_dtype})


def _how_held(layer: Linear) -> dict[str, Any]:
    """What of `precision` can be read from a layer, by its key there."""
    if isinstance(layer, Linear4bit):
        weight, state = layer.weight, layer.weight.quant_state
        return {
            "quant_type": weight.quant_type,
            "double_quant": bool(state.nested),
            "block_size": int(state.blocksize),
            "quant_storage": _name(weight.dtype),
            "compute_dtype": _name(layer.compute_dtype),
        }
    if isinstance(layer, Linear8bitLt):
        return {"quant_type": "int8"}
    return {"quant_type": None, "weight_dtype": _name(layer.weight.dtype)}


def _how_wanted(layer: Linear, precision: PrecisionConfig) -> dict[str, Any]:
    """The type always; the rest, where the layer is of that type, by what such a layer has."""
    held = _how_held(layer)
    if held["quant_type"] != precision.quant_type:
        return {"quant_type": precision.quant_type}
    return {key: getattr(precision, key) for key in held}


def _compare_held(name: str, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in wanted if held[key] != wanted[key]]
    if differing:
        found, asked = (
            ", ".join(f"{key} {'none' if of[key] is None else of[key]}" for key in differing)
            for of in (held, wanted)
        )
        raise UserError(
            f"the base is not what `precision` asks for: {name} is held as {found}, configured is "
            f"{asked}; `dvc repro quantize` makes it anew"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
