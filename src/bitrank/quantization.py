"""The `quantize` stage: the base in the configured precision, and what that changed.

The checkpoint is reloaded before it counts: its logits must be those of the model that was saved,
to the bit. The error of a layer is the Frobenius norm of W - dq(Q(W)) over that of W.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank import chain, environment, identity, models, paths, records, weights
from bitrank.artifacts import whole_folder
from bitrank.config import PrecisionConfig, RuntimeConfig
from bitrank.progress import progress


def quantize_base(
    precision: PrecisionConfig,
    runtime: RuntimeConfig,
    original: Path = paths.ORIGINAL,
    quantized: Path = paths.QUANTIZED,
) -> records.Record:
    """Write the quantized base (or, at full precision, the base in its configured type).

    Raises:
        UserError: the live model is not held as configured, or the device cannot compute so.
        RuntimeError: the checkpoint does not reload to the same logits (a library defect).
    """
    device = environment.prepare_runtime(runtime, precision)
    model = weights.quantize_model(original, precision, device)
    before = models.load_model(original, keep_dtype=True)
    weights.set_block_size(model, before, precision)
    weights.check_precision(model, precision)
    layers = _layer_errors(before, model)
    original_hash = identity.hash_weights(original)
    with whole_folder(quantized) as folder:
        models.save_model(model, models.load_tokenizer(original), folder)
        _check_reload(model, folder, device)
        size = models.weight_bytes(folder)
        base_hash = identity.hash_weights(folder)
        stamp = chain.BaseStamp(
            original_hash=original_hash, base_hash=base_hash, precision=precision
        )
        chain.write_stamp(folder, stamp)
    error, norm = (sum(layer.pop(key) for layer in layers) for key in ("_error", "_norm"))
    return records.Record(
        stage="quantize",
        treatment={
            "base_hash": original_hash,
            "precision": {"name": precision.name, **weights.describe_precision(model)},
        },
        result={
            "base_hash": base_hash,
            "size_bytes": size,
            "original_size_bytes": models.weight_bytes(original),
            "bits_per_quantized_weight": _bits_per_weight(model),
            "relative_error": (error / norm) ** 0.5,
            "layers": layers,
        },
        observation={},
    )


def _layer_errors(original: PreTrainedModel, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Per layer: shape and errors; `_error` and `_norm` are sums of squares for the total."""
    before = weights.linear_layers(original)
    after = weights.linear_layers(model)
    described = []
    with progress("quantization error", len(before), "layers") as shown:
        for name, layer in before.items():
            weight = layer.weight.float()
            difference = weight - weights.dequantized_weight(after[name]).to(weight.device)
            error = float(difference.double().square().sum())
            norm = float(weight.double().square().sum())
            described.append(
                {
                    "name": name,
                    "shape": list(weight.shape),
                    "relative_error": (error / norm) ** 0.5 if norm else None,
                    "largest_error": float(difference.abs().max()),
                    "_error": error,
                    "_norm": norm,
                }
            )
            shown.advance()
    return described


def _check_reload(model: PreTrainedModel, folder: Path, device: torch.device) -> None:
    reloaded = models.load_model(folder, device)
    tokens = torch.arange(32, device=device).unsqueeze(0) + 100
    with torch.inference_mode():
        if not torch.equal(model(tokens).logits, reloaded(tokens).logits):
            raise RuntimeError(f"{folder} reloads to other logits than the model that was saved")


def _bits_per_weight(model: PreTrainedModel) -> float | None:
    """Bits of codes and scales for each quantized weight; None when nothing is quantized."""
    held = [(layer, weights.quantized_bytes(layer)) for layer in
            weights.linear_layers(model).values()]  # fmt: skip
    quantized = [(layer, size) for layer, size in held if size is not None]
    if not quantized:
        return None
    count = sum(layer.in_features * layer.out_features for layer, _ in quantized)
    return 8 * sum(size for _, size in quantized) / count
