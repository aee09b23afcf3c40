"""LoRA's update in one differentiable operation: y + s (x A^T) B^T.

PEFT computes it from five operations of torch, which on a CPU take a quarter of a training step of
a small model: products with a rank-8 matrix are two to three times slower in the layouts that
autograd picks for them, and scaling and adding pass over whole activations. PEFT has a place for
another forward pass of a layer (`LoraVariant`); what is stored and loaded stays PEFT's own, and so
are the numbers up to rounding.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from peft.tuners.lora.layer import LoraVariant
from torch.autograd.function import once_differentiable


class LowRankUpdate(torch.autograd.Function):
    """y of shape (..., out), x of shape (..., in), A (rank, in), B (out, rank), s a number."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows = x.flatten(0, -2)
        inner = (a @ rows.t()).t()
        ctx.save_for_backward(rows, inner, a, b)
        ctx.scale = scale
        if y.dtype == inner.dtype:
            updated = torch.addmm(y.flatten(0, -2), inner, b.t(), alpha=scale)
            # No view for autograd, which forbids to add to one in place, as Falcon's blocks do.
            return cast(torch.Tensor, torch.ops.aten._unsafe_view(updated, y.shape))
        return _added(y, (inner @ b.t()).mul_(scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, a, b = ctx.saved_tensors
        of_rows = gradient.flatten(0, -2).to(a.dtype)
        of_inner = (b.t() @ of_rows.t()).mul_(ctx.scale)  # (rank, rows)
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = (of_inner.t() @ a).view(*gradient.shape[:-1], -1)
        of_b = (inner.t() @ of_rows).mul_(ctx.scale).t()
        return gradient, of_x, of_inner @ rows, of_b, None


def add_update(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> torch.Tensor:
    """`LowRankUpdate` without gradients, written into `y` where the types are the same.

    The result is PEFT's to the last digit: sums run in its order, and to scale inside the product
    rounds as often as outside where the scale is a power of two.
    """
    inner = torch.nn.functional.linear(x, a).flatten(0, -2)
    if y.dtype == inner.dtype and math.frexp(scale)[0] == 0.5:
        y.view(-1, y.shape[-1]).addmm_(inner, b.t(), alpha=scale)
        return y
    return _added(y, (inner @ b.t()).mul_(scale))


def _added(y: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """The sum of both, rounded once to y's type; the update is fp32, or of that type too."""
    return update.view_as(y).add_(y).to(y.dtype)


class FusedLora(LoraVariant):  # type: ignore[misc]
    """Plain LoRA, computed in one operation; merged as PEFT merges plain LoRA."""

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        a, b = (part[active_adapter].weight for part in (module.lora_A, module.lora_B))
        dropped = module.lora_dropout[active_adapter](x)
        scale = module.scaling[active_adapter]
        if not torch.is_grad_enabled():
            return add_update(result, dropped, a, b, scale)
        updated = LowRankUpdate.apply(result, dropped, a, b, scale)  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, updated)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        return orig_weight + _delta(module, active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        orig_weight.data += _delta(module, active_adapter, orig_weight)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        return orig_weight - _delta(module, active_adapter, orig_weight)


def _delta(module: Any, active_adapter: str, weight: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, module.get_delta_weight(active_adapter).to(weight.dtype))
