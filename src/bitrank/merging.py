"""The `merge` stage: adapter and base become one plain model.

The default adds the update to the dequantized weights, dq(W4) + (alpha / rank) * B A: the function
that was trained; with DoRA the rows of the sum are then brought to their trained lengths. Sums are
in fp32 and cast last. Merging back into 4 bits is not offered: the update is far below the
quantization step and would be rounded away (`fidelity` measures it).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitrank import (
    adapters,
    chain,
    data,
    environment,
    full_tuning,
    identity,
    models,
    paths,
    records,
    unmerged,
    weights,
)
from bitrank.artifacts import whole_folder
from bitrank.config import MergeConfig, RuntimeConfig
from bitrank.distances import measure_distance
from bitrank.progress import progress

ROWS_AT_ONCE = 8
TOLERANCE = 1e-2
"""Logits of dq(W4) + update may differ from base + adapter by rounding only, at fp32."""


def merge_adapter(
    config: MergeConfig,
    runtime: RuntimeConfig,
    quantized: Path = paths.QUANTIZED,
    original: Path = paths.ORIGINAL,
    adapter: Path = paths.ADAPTER,
    prepared: Path = paths.PREPARED,
    target: Path = paths.MERGED,
) -> records.Record:
    """Write the merged model and compare it with base and adapter on held-out prompts.

    Raises:
        UserError: the adapter belongs to another base, template or rows; `original` is not the
            base that was quantized; weights were changed since they were written.
        RuntimeError: an exact merge does not give the logits of base and adapter.
    """
    device = environment.prepare_runtime(runtime)
    of, stamp, named = _take_over(quantized, original, adapter, prepared, config.base)
    why_not = adapters.why_not_merged(adapter)
    if why_not is not None:
        return unmerged.leave_out(why_not, named, stamp, target)
    tokenizer = models.load_tokenizer(quantized)
    base = weights.load_base(quantized, of.precision, device)
    tuned = adapters.load_adapter(base, adapter, of.base_hash)
    source = quantized if config.base == "dequantized" else original
    merged = weights.dequantize_model(models.load_model(source, device))
    num_layers = add_updates(merged, tuned)
    merged = merged.to(getattr(torch, config.dtype))
    check = _compare(tuned, merged, tokenizer, _prompts(prepared, config.check_items))
    exact = config.base == "dequantized" and config.dtype == "float32" and _is_float32(tuned)
    if exact and check["largest_logit_difference"] > TOLERANCE:
        raise RuntimeError(f"the merged model differs from base and adapter: {check}")
    with whole_folder(target) as folder:
        models.save_model(merged, tokenizer, folder)
        merged_hash, size = identity.hash_weights(folder), models.weight_bytes(folder)
        made_of = {"added_to_hash": named["added_to_hash"], "adapter": stamp}
        chain.write_stamp(folder, chain.MergedStamp(merged_hash=merged_hash, **made_of))
    as_asked = {"base": config.base, "dtype": config.dtype}
    return records.Record(
        stage="merge",
        treatment={**as_asked, **named, "compared_with": _name_tuned(tuned)},
        result={
            "merged_hash": merged_hash,
            "size_bytes": size,
            "num_merged_layers": num_layers,
            "check": check,
            "why_not": None,
        },
        observation={},
    )


def _take_over(
    quantized: Path, original: Path, adapter: Path, prepared: Path, added_to: str
) -> tuple[chain.BaseStamp, chain.Stamp, dict[str, Any]]:
    """The checked stamps of base and adapter, and all identities by the keys of the record."""
    of = chain.check_base(quantized)
    stamp = chain.check_adapter(adapter, of.base_hash)
    rows = chain.check_rows(adapter, stamp, prepared)
    return of, stamp, {
        "base_hash": of.base_hash,
        "original_hash": of.original_hash,
        **vars(rows),
        "first_weights_hash": stamp.first_weights_hash,
        "adapter_hash": stamp.adapter_hash,
        "added_to_hash": (
            chain.check_original(original, of.original_hash)
            if added_to == "original"
            else of.base_hash
        ),
    }  # fmt: skip


def _name_tuned(tuned: adapters.Tuned) -> str:
    if isinstance(tuned, PreTrainedModel):
        return "tuned model"
    return "base and adapter, quantized layers computing as in training"


def _is_float32(tuned: Any) -> bool:
    """Whether base and adapter compute in fp32 throughout."""
    held = weights.describe_precision(tuned)
    plain = {p.dtype for p in tuned.parameters() if p.is_floating_point()}
    return plain == {torch.float32} and set(held["compute_dtypes"]) <= {"float32"}


def add_updates(merged: PreTrainedModel, tuned: Any) -> int:
    """Add each adapted layer's update to the plain layer of the same name; return how many.

    Full fine-tuning has no updates: all its weights take the place of the base's.
    """
    if isinstance(tuned, PreTrainedModel):
        return full_tuning.copy_weights(tuned, merged)
    layers, method = weights.linear_layers(merged), adapters.method_of(tuned)
    count = 0
    for name, adapted in adapters.adapted_layers(tuned):
        weight, bias = layers[name].weight, layers[name].bias
        weight.data = method.merged_weight(adapted, weight.data.float()).to(weight.dtype)
        if bias is not None:
            bias.data = method.merged_bias(adapted, bias.data.float()).to(bias.dtype)
        count += 1
    return count


def _prompts(prepared: Path, count: int) -> list[str]:
    # Held-out rows: the adapter has not been trained on them. Their number is told in the record.
    return [row.prompt for row in data.read_split(paths.split("validation", prepared))][:count]


def _compare(
    tuned: Any, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> dict[str, Any]:
    """Next-token distributions after each prompt; KL(base + adapter || merged) in nats."""
    rows = [measure_distance(*pair) for pair in _logit_pairs(tuned, merged, tokenizer, texts)]
    return {
        "num_items": len(rows),
        "largest_logit_difference": max(largest for _, largest, _ in rows),
        "mean_kl": fmean(divergence for divergence, _, _ in rows),
        "argmax_agreement": fmean(agreed for _, _, agreed in rows),
    }


def _logit_pairs(
    tuned: Any, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each text's next-token logits of both models, of shape (vocabulary,)."""
    rows = sorted((list(tokenizer(text).input_ids) for text in texts), key=len)
    with progress("merge check", len(rows), "prompts") as shown:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            ends = torch.tensor([len(row) - 1 for row in part], device=merged.device)
            # Padding stands on the right, where causal attention does not look.
            padded = [row + [0] * (len(part[-1]) - len(row)) for row in part]
            ids = torch.tensor(padded, device=merged.device)
            with weights.evaluating_as_trained(tuned):
                expected = tuned(ids, use_cache=False).logits
            with torch.no_grad():
                found = merged(ids, use_cache=False).logits
            for index, end in enumerate(ends):
                yield expected[index, end], found[index, end]
            shown.advance(len(part))
