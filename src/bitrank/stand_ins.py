"""What stands for the parts of a model that torch's meta device cannot run.

On the meta device a tensor has a shape and no bytes. Quantized layers have kernels for real devices
only; attention would be computed by the kernel that keeps all scores; and a model that asks for a
value gets an error. With these stand-ins a whole training step runs, and makes and keeps tensors
of the same sizes as on a CPU.
"""

# mypy: allow-untyped-calls
# because torch's functions of autograd have no types.
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from bitrank import meters
from bitrank.config import PrecisionConfig

META = torch.device("meta")


def quantized_tensors(
    out_features: int, in_features: int, precision: PrecisionConfig
) -> Iterator[torch.Tensor]:
    """What a quantized layer holds in place of its weight, on the meta device: first the codes.

    4 bits: codes, a scale for each block, a table of 16 code points; with double quantization the
    scales are 8-bit codes themselves, with fp32 scales for blocks of 256 of them, a table of 256
    points and their mean. 8 bits: codes and a scale for each row.
    """
    num_weights = out_features * in_features
    if precision.quant_type == "int8":
        yield torch.empty(out_features, in_features, dtype=torch.int8, device=META)
        yield torch.empty(out_features, device=META)
        return
    blocks = -(-num_weights // (precision.block_size or 64))
    yield torch.empty(-(-num_weights // 2), 1, dtype=torch.uint8, device=META)
    yield torch.empty(16, device=META)
    if not precision.double_quant:
        yield torch.empty(blocks, device=META)
        return
    yield torch.empty(blocks, dtype=torch.uint8, device=META)
    yield torch.empty(-(-blocks // 256), device=META)
    yield torch.empty(256, device=META)
    yield torch.empty((), device=META)


class QuantizedLayer(torch.nn.Linear):
    """A layer with the tensors of bitsandbytes' quantized ones, kept and temporary, and no values.

    bitsandbytes 0.50, from its source: a 4-bit product dequantizes within its kernel on the way
    forward, and into a whole tensor on the way back; an 8-bit one on a CPU into a whole tensor on
    both, and keeps its input; in evaluation it takes its input to 8 bits, by way of 16.
    """

    eight_bit: bool
    is_copied: bool
    compute_dtype: torch.dtype
    scales: list[torch.Tensor]

    @classmethod
    def take_the_place_of(cls, layer: torch.nn.Linear, precision: PrecisionConfig) -> None:
        codes, *scales = quantized_tensors(layer.out_features, layer.in_features, precision)
        layer.__class__ = cls
        stand_in = cast(QuantizedLayer, layer)
        stand_in.weight = torch.nn.Parameter(codes, requires_grad=False)
        stand_in.scales = scales
        stand_in.is_copied = False
        stand_in.eight_bit = precision.quant_type == "int8"
        stand_in.compute_dtype = getattr(torch, precision.compute_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result = _Product.apply(input.to(self.compute_dtype), self)
        result = result.to(input.dtype)
        # Where an adapter adds to the result of a 4-bit layer, PEFT copies it before.
        copied = self.is_copied and not self.eight_bit
        return cast(torch.Tensor, result.clone() if copied else result)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=dtype, device=META)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLayer) -> torch.Tensor:
        ctx.layer = layer
        if layer.eight_bit:
            ctx.input = x
            _beside = layer.dequantized(x.dtype) if layer.training else _in_8_bits(x)
        return x.new_empty(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


def _in_8_bits(x: torch.Tensor) -> torch.Tensor:
    halves = x.to(torch.float16)
    return torch.empty_like(halves, dtype=torch.int8)


class MetaMeter(meters.TensorMeter):
    """Answers what no tensor without values can, so that a model may ask: always with yes.

    transformers asks whether rows are packed by testing that all positions follow each other.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def cpu_attention() -> Iterator[None]:
    """Torch would choose a kernel by the device, and for meta the one that keeps all scores.

    The function is replaced for everybody: torch's modes do not reach what checkpointing computes
    anew on the way back.
    """
    functional = cast(Any, torch.nn.functional)
    kept = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = kept


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # the kernel sees it from the shapes
) -> torch.Tensor:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out = attend(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return cast(torch.Tensor, out[0])
