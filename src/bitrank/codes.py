"""4-bit codes: what they stand for, how far apart they are, and which of them a merge changes.

`weights` is the door to bitsandbytes' layers, this to its 4-bit quantizer. A weight is cut into
blocks, flat, row after row; each block has a scale, its largest magnitude, and each of its weights
is the code point nearest to it, times that scale (Dettmers et al. 2023, section 3). With double
quantization the scales are held in 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import bitsandbytes
import torch

from bitrank.config import CodesConfig

STEP = "mean over the blocks of a layer: scale times mean gap between neighbouring code points"


@dataclass(frozen=True)
class FourBit:
    """One weight in 4 bits."""

    packed: torch.Tensor
    """Two codes in a byte."""
    state: Any
    """bitsandbytes' `QuantState`: scales, code points, shape."""

    @property
    def settings(self) -> CodesConfig:
        return CodesConfig(
            quant_type=self.state.quant_type,
            block_size=int(self.state.blocksize),
            double_quant=bool(self.state.nested),
        )

    def values(self) -> torch.Tensor:
        """The weight that the codes stand for, in fp32, of its own shape."""
        full = bitsandbytes.functional.dequantize_4bit(self.packed, self.state)
        return cast(torch.Tensor, full).float()

    def mean_step(self) -> float:
        """See `STEP`."""
        points = self.state.code.float().unique()
        scales = self.state.absmax
        if self.state.nested:
            first = bitsandbytes.functional.dequantize_blockwise(scales, self.state.state2)
            scales = first + self.state.offset
        gap = float(points[-1] - points[0]) / (len(points) - 1)
        return gap * float(scales.double().mean())

    def count_changed(self, other: FourBit) -> int:
        """How many of the codes stand for another point there; both are of one shape and type."""
        return int((self._places() != other._places()).sum())

    def _places(self) -> torch.Tensor:
        """The place of each weight's code point; fp4 has a zero of either sign, which is one."""
        points = cast(torch.Tensor, self.state.code)
        first = (points.unsqueeze(1) == points).int().argmax(dim=1)
        held = self.packed.reshape(-1).view(torch.uint8).int()
        return first[torch.stack((held >> 4, held & 15))]


def codes_of(layer: torch.nn.Module) -> FourBit | None:
    """The codes of a quantized layer; None where it has no 4-bit ones."""
    state = getattr(layer.weight, "quant_state", None)
    return None if state is None else FourBit(cast(torch.Tensor, layer.weight.data), state)


def encode(weight: torch.Tensor, settings: CodesConfig, dtype: torch.dtype) -> FourBit:
    """A weight of shape (out, in) in 4 bits, quantized from `dtype`, as a model's own are."""
    packed, state = bitsandbytes.functional.quantize_4bit(
        weight.to(dtype).contiguous(),
        blocksize=settings.block_size,
        compress_statistics=settings.double_quant,
        quant_type=settings.quant_type,
    )
    return FourBit(packed, state)
