"""Base models and tokenizers: the one door to transformers' loading and to bitsandbytes.

Safetensors only, no code from a model's folder, nothing fetched: every folder is a local path.
Attention is always computed by torch's `scaled_dot_product_attention`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias, cast

import bitsandbytes
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bitrank.config import PrecisionConfig
from bitrank.errors import UserError

ATTENTION = "sdpa"
Linear: TypeAlias = torch.nn.Linear
"""Plain, `Linear4bit` and `Linear8bitLt` alike: the quantized ones are its subclasses."""

ADAPTER = ".lora_"
"""What marks an adapter's own modules inside a base model: they are not the base."""

# Bars and one line for each int8 product would drown our own progress.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(os.path.abspath(folder), local_files_only=True)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(
    folder: Path, device: torch.device | None = None, *, keep_dtype: bool = False
) -> PreTrainedModel:
    """A model in evaluation mode, frozen, in the precision in which the folder holds it.

    `keep_dtype` leaves the weights as stored, for a model that only passes through; otherwise the
    stored type is also the one that `config.json` names, so the two are the same for our own
    checkpoints.
    """
    model = AutoModelForCausalLM.from_pretrained(
        os.path.abspath(folder),
        dtype="auto",
        device_map=None if keep_dtype or device is None else {"": device},
        attn_implementation=ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return _frozen(model)


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF checkpoint dequantized to fp32, with nothing left of its quantized past."""
    where = {"gguf_file": file.name, "local_files_only": True}
    folder = os.path.abspath(file.parent)
    # A bar of the converter's own, which nothing else turns off, would fill a log with one line.
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())
    with quiet:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=ATTENTION, **where
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return _frozen(model), tokenizer


def build_tiny(
    hidden_size: int, num_layers: int, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random Llama over bytes: 256 byte tokens and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "<|end|>"])}
    core = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>"
    )
    end = vocabulary["<|end|>"]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        attn_implementation=ATTENTION,
    )
    torch.manual_seed(seed)
    return _frozen(LlamaForCausalLM(config)), tokenizer


def quantize_model(
    folder: Path, precision: PrecisionConfig, device: torch.device
) -> PreTrainedModel:
    """The model of `folder` in the configured precision, from the original weights.

    transformers knows no block size but 64, so another one is set layer by layer; the checkpoint
    carries it and reloads anywhere.
    """
    dtype = getattr(torch, precision.weight_dtype)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.abspath(folder),
        dtype=dtype,
        device_map={"": device},
        attn_implementation=ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=_to_bitsandbytes(precision),
    )
    if precision.block_size is not None and precision.block_size != 64:
        original = linear_layers(load_model(folder, keep_dtype=True))
        for name, layer in linear_layers(model).items():
            if isinstance(layer, Linear4bit):
                layer.weight = requantize(original[name].weight.data.to(device, dtype), layer,
                                          block_size=precision.block_size)  # fmt: skip
    return _frozen(model)


def requantize(weight: torch.Tensor, like: Linear4bit, block_size: int) -> Params4bit:
    """`weight`, quantized as `like` is, with `block_size` weights to a scale."""
    params = Params4bit(
        weight.contiguous(),
        requires_grad=False,
        quant_type=like.weight.quant_type,
        compress_statistics=like.weight.compress_statistics,
        quant_storage=like.weight.quant_storage,
        blocksize=block_size,
        module=like,
    )
    return cast(Params4bit, params.to(weight.device))


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
        bnb_4bit_quant_storage=torch.uint8,
    )


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write safetensors, configuration and tokenizer, without the path the model came from."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def linear_layers(model: PreTrainedModel) -> dict[str, Linear]:
    """The linear layers inside the blocks, by name: what is quantized and what gets an adapter."""
    head = model.get_output_embeddings()
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and ADAPTER not in name
    }


def dequantized_weight(layer: Linear) -> torch.Tensor:
    """The weight that the layer stands for, in fp32, whatever holds it; shape (out, in)."""
    if isinstance(layer, Linear4bit):
        packed, state = layer.weight.data, layer.weight.quant_state
        return cast(torch.Tensor, bitsandbytes.functional.dequantize_4bit(packed, state)).float()
    if isinstance(layer, Linear8bitLt):
        return layer.weight.data.float() * (int8_scale(layer).float().view(-1, 1) / 127)
    return layer.weight.data.float()


def quantized_bytes(layer: Linear) -> int | None:
    """Bytes of a quantized layer's codes and scales; None for a plain layer.

    The constant code books are not counted, as in Dettmers et al. 2023, section 3.
    """
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
    return _frozen(model)


def count_weights(model: PreTrainedModel) -> int:
    """Parameters of the base, a packed 4-bit element counted as the weights that it holds."""
    layers = linear_layers(model)
    inside = {id(layer.weight) for layer in layers.values()}
    linear = sum(layer.in_features * layer.out_features for layer in layers.values())
    return linear + sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and ADAPTER not in name
    )


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
        if ADAPTER not in name:
            held[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    types = sorted({w.quant_type for w in four} | ({"int8"} if eight else set()))
    return {
        "num_linear_layers": len(layers),
        "num_quantized_layers": len(four) + len(eight),
        "quant_types": types,
        "double_quant": sorted({bool(w.quant_state.nested) for w in four}),
        "block_sizes": sorted({int(w.quant_state.blocksize) for w in four}),
        "compute_dtypes": sorted(
            {str(m.compute_dtype).removeprefix("torch.")
             for m in layers.values() if isinstance(m, Linear4bit)}
        ),
        "stored_elements_by_dtype": dict(sorted(held.items())),
        "attention": model.config._attn_implementation,
    }  # fmt: skip


def check_precision(model: PreTrainedModel, precision: PrecisionConfig) -> None:
    """Raises UserError: a layer is not held as configured; the first such layer is named."""
    for name, layer in linear_layers(model).items():
        found: tuple[object, ...] = (None, False, None)
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            found = (layer.weight.quant_type, bool(state.nested), int(state.blocksize))
        elif isinstance(layer, Linear8bitLt):
            found = ("int8", False, None)
        wanted = (precision.quant_type, precision.double_quant, precision.block_size)
        if found != wanted:
            raise UserError(
                f"the base is not what `precision` asks for: {name} is held as "
                f"{found}, configured is {wanted} (type, double quantization, block size); "
                "`dvc repro quantize` makes it anew"
            )
