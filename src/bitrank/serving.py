"""The ways to serve one adapter, layer by layer: which weight each puts in the place of the base's.

W is a layer's original weight, W4 its 4-bit codes, dq(W4) what those stand for, Q the quantizer
that made them, Δ the update of the one adapter, which was trained on dq(W4).

adapter                 dq(W4), the adapter beside it: what was trained
adapter_on_original     W, the adapter beside it: weights that training did not see
merged_original         W + Δ
merged_dequantized      dq(W4) + Δ: the function that was trained, up to rounding
merged_requantized      Q(dq(W4) + Δ): what PEFT's `merge_and_unload` makes of a 4-bit base
merged_then_quantized   Q(W + Δ): quantized once, after merging. Where the base of the training is
                        not quantized, Δ was trained on W, and this is "LoRA, then quantize"

With DoRA, Δ is what the rows' trained lengths make of the sum, too. Sums are fp32 and cast last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank import adapters, codes, weights
from bitrank.codes import FourBit
from bitrank.config import CodesConfig, Way
from bitrank.method import Method

TRAINED = "adapter"
UNMERGED: tuple[Way, ...] = ("adapter_on_original",)
INTO_ORIGINAL: tuple[Way, ...] = ("merged_original", "merged_then_quantized")
IN_FOUR_BITS: tuple[Way, ...] = ("merged_requantized", "merged_then_quantized")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """All that the weight of one linear layer is merged from; tensors are fp32, (out, in)."""

    name: str
    original: torch.Tensor
    """W"""
    trained_on: torch.Tensor
    """dq(W4), or what else the base of the training holds."""
    own_codes: FourBit | None
    """W4; None where the base of the training has no 4-bit codes."""
    adapted: Any
    """What holds the update: PEFT's layer, a fully tuned one, or None."""
    method: Method
    settings: CodesConfig
    dtype: torch.dtype
    """The base's own type: what is quantized is cast to it first, as W was."""

    def start(self, way: Way) -> torch.Tensor:
        """What the update is added to."""
        return self.original if way in INTO_ORIGINAL else self.trained_on

    def updated(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if self.adapted is None else self.method.merged_weight(self.adapted, weight)

    def updated_bias(self, bias: torch.Tensor) -> torch.Tensor:
        return bias if self.adapted is None else self.method.merged_bias(self.adapted, bias)

    def codes_before(self) -> FourBit:
        """Of the weight without the update: W4, or Q(W)."""
        return self.own_codes or codes.encode(self.original, self.settings, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What quantizing a merged layer left of its update."""

    name: str
    num_codes: int
    num_changed: int
    kept: float
    """<Q(W' + Δ) - before, Δ>, a sum of products over the layer's weights."""
    square: float
    """<Δ, Δ>"""


def reason_against(way: Way, base: PreTrainedModel, method: Method) -> str | None:
    """Why a way does not exist for a base and a method; None where it does."""
    types = weights.describe_precision(base)["quant_types"]
    if method.not_merged is not None and way not in UNMERGED:
        return method.not_merged
    if method.name == "full" and way != "merged_then_quantized":
        return "full fine-tuning has no update that could be added to anything"
    if not types and way in (*UNMERGED, "merged_dequantized"):
        return "the base is not quantized: it is the original itself"
    if way == "merged_requantized" and not set(types) & {"fp4", "nf4"}:
        return "the base has no 4-bit codes to go back to"
    return None


def read_layers(
    original: PreTrainedModel,
    base: PreTrainedModel,
    tuned: adapters.Tuned,
    settings: CodesConfig,
) -> Iterator[Layer]:
    """Each linear layer, one at a time in memory; `base` is the base as training held it."""
    before, held = weights.linear_layers(original), weights.linear_layers(base)
    method = adapters.method_of(tuned)
    adapted = dict(adapters.adapted_layers(tuned)) if method.not_merged is None else {}
    dtype = base.get_input_embeddings().weight.dtype
    for name, layer in held.items():
        own = codes.codes_of(layer)
        yield Layer(
            name=name,
            original=before[name].weight.data.float().to(layer.weight.device),
            trained_on=weights.dequantized_weight(layer),
            own_codes=own,
            adapted=adapted.get(name),
            method=method,
            settings=settings if own is None else own.settings,
            dtype=dtype,
        )


def merge_layer(way: Way, layer: Layer) -> tuple[torch.Tensor, Change | None]:
    """The weight that a way serves, fp32; and what became of the update, where it is quantized."""
    start = layer.start(way)
    merged = layer.updated(start)
    if way not in IN_FOUR_BITS:
        return merged, None
    before = layer.codes_before()
    if layer.adapted is None:
        return before.values(), None
    after = codes.encode(merged, layer.settings, layer.dtype)
    delta, moved = (merged - start).double(), (after.values() - before.values()).double()
    change = Change(
        name=layer.name,
        num_codes=merged.numel(),
        num_changed=after.count_changed(before),
        kept=float((moved * delta).sum()),
        square=float(delta.square().sum()),
    )
    return after.values(), change


def describe_update(layer: Layer) -> dict[str, Any]:
    """Size of the update beside the quantization step; root mean squares over the weights.

    `mean_step` is that of `codes.FourBit`; `error_rms` is of W - dq(Q(W)).
    """
    before = layer.codes_before()
    delta = rms(layer.updated(layer.trained_on) - layer.trained_on)
    step, error = before.mean_step(), rms(layer.original - before.values())
    return {
        "name": layer.name,
        "update_rms": delta,
        "mean_step": step,
        "error_rms": error,
        "update_to_step": delta / step if step else None,
    }


def summarize_changes(changes: Sequence[Change]) -> dict[str, float | None]:
    """Over all adapted layers: share of the codes that changed, and of the update that is left.

    What is left is measured by projection: <Q(W' + Δ) - Q(W'), Δ> over <Δ, Δ>.
    """
    square = sum(change.square for change in changes)
    count = sum(change.num_codes for change in changes)
    return {
        "codes_changed_share": (
            sum(change.num_changed for change in changes) / count if count else None
        ),
        "update_left_share": sum(c.kept for c in changes) / square if square else None,
    }


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
