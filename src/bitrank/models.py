"""Base models and tokenizers: the one door to transformers' loading.

Safetensors only, no code from a model's folder, nothing fetched: every folder is a local path.
Attention is always computed by torch's `scaled_dot_product_attention`.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import cast

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bitrank.errors import UserError

ATTENTION = "sdpa"
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
    build_of_plain_layers(folder)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.abspath(folder),
        dtype="auto",
        device_map=None if keep_dtype or device is None else {"": device},
        attn_implementation=ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return frozen(model)


def build_of_plain_layers(folder: Path) -> None:
    """Have a Falcon built of torch's linear layers, which compute what its own class does.

    transformers 5.23 quantizes exactly `torch.nn.Linear` and passes over subclasses without a word:
    a Falcon "in 4 bits" would be held in full.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.get("model_type") == "falcon":
        from transformers.models.falcon import modeling_falcon

        modeling_falcon.FalconLinear = torch.nn.Linear


def load_checkpoint(folder: Path, key: str) -> PreTrainedModel:
    """A model that others have saved, checked for what the pipeline relies on.

    `key` is the configuration's name for where it comes from, for the messages.

    Raises:
        UserError: weights that are pickled, quantized or of no floating-point type of ours, a class
            that transformers does not have, or one that computes all logits only.
    """
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"`{key}`: {no_safetensors(p.name for p in folder.iterdir())}")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if held := settings.get("quantization_config"):
        raise UserError(
            f"`{key}`: the weights are quantized already ({held.get('quant_method')}): take the "
            "original ones; `precision` quantizes them"
        )
    try:
        model = load_model(folder, keep_dtype=True)
    except (ValueError, ImportError, OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"`{key}`: transformers {transformers.__version__} cannot load it without running code "
            f"from its folder: {reason[0]}"
        ) from error
    dtype = model.get_input_embeddings().weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"`{key}`: weights are {dtype}; take float32, bfloat16 or float16 ones")
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        raise UserError(
            f"`{key}`: {type(model).__name__} computes logits at all positions only; take a model "
            "whose forward pass has `logits_to_keep`, such as Llama, Qwen2, Mistral or Falcon"
        )
    return model


def no_safetensors(names: Iterable[str]) -> str:
    """What to do about a folder without safetensors, whose files have these names."""
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not pickles:
        return "there are no *.safetensors weights"
    return (
        f"there are no *.safetensors weights; {', '.join(pickles)} is a pickle, which can run "
        "code. Where you trust it, convert it: `AutoModelForCausalLM.from_pretrained(here)"
        ".save_pretrained(there)`, the tokenizer likewise, then model=local model.source.path=there"
    )


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF checkpoint dequantized to fp32, with nothing left of its quantized past."""
    where = {"gguf_file": file.name, "local_files_only": True}
    folder = os.path.abspath(file.parent)
    # A bar of the converter's own, which nothing else turns off, would fill a log with one line.
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())
    with quiet, _gguf_read_once():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=ATTENTION, **where
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return frozen(model), tokenizer


def check_positions(model: PreTrainedModel, max_sequence_tokens: int) -> None:
    """Raises UserError: rows may be longer than what the model was made for."""
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and max_sequence_tokens > room:
        raise UserError(
            f"`data.max_sequence_tokens` is {max_sequence_tokens}, but the base has {room} "
            "positions: lower it, or take a base with a longer context"
        )


def weight_bytes(folder: Path) -> int:
    """Size of a checkpoint's weight files, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Let one reading of a GGUF file serve configuration, tokenizer and weights.

    transformers parses the file for each, and builds the table of tensor names for each module:
    together more than half of a minute for nothing.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    kept = {name: getattr(gguf, name) for name in names}
    for name, made in kept.items():
        setattr(gguf, name, lru_cache(made))
    try:
        yield
    finally:
        for name, made in kept.items():
            setattr(gguf, name, made)


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
    return frozen(LlamaForCausalLM(config)), tokenizer


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, with nothing trainable."""
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write safetensors, configuration and tokenizer, without the path the model came from."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
