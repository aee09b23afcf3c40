"""What is trained, and how: the sections `adapter` and `train` of `params.yaml`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bitrank.pins import Faults

LAST = re.compile(r"last ([1-9]\d*)")
"""How the blocks at the end of the model are asked for, such as "last 4"."""


@dataclass(frozen=True, kw_only=True)
class LoraAdapter:
    """Low-rank updates beside frozen linear layers (Hu et al. 2021)."""

    method: Literal["lora"]
    rank: int
    alpha_per_rank: float | None
    """alpha / rank. LoRA's update is scaled by just this number, whatever the rank; rsLoRA's by
    alpha / sqrt(rank), which is this number times sqrt(rank) and so grows with the rank."""
    alpha_per_sqrt_rank: float | None
    """alpha / sqrt(rank), instead of the above: rsLoRA's update is scaled by just this number,
    LoRA's by this number / sqrt(rank)."""
    dropout: float
    use_dora: bool
    """Train the length of each row of the weight apart from its direction (Liu et al. 2024)."""
    use_rslora: bool
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)."""
    target_modules: list[str]
    """Linear layers that get an adapter: by the end of their name, or by group: `attention`,
    `feed-forward`, `all-linear`."""
    layers: list[int] | str | None
    """Blocks whose layers get one: null for all, a list of numbers from 0, or "last 4"."""

    @property
    def alpha(self) -> float:
        """What the policy, of which just one is given, makes of the rank."""
        if self.alpha_per_rank is not None:
            return self.alpha_per_rank * self.rank
        return (self.alpha_per_sqrt_rank or 0.0) * math.sqrt(self.rank)

    def faults(self) -> Faults:
        if self.rank < 1:
            yield "rank", f"must be at least 1, got {self.rank}"
        policies = ("alpha_per_rank", "alpha_per_sqrt_rank")
        given = {name: getattr(self, name) for name in policies if getattr(self, name) is not None}
        if len(given) != 1:
            yield (
                "alpha_per_rank",
                f"or `adapter.alpha_per_sqrt_rank` must be given, and the other be null; got "
                f"{'both' if given else 'neither'}",
            )
        for name, value in given.items():
            if value <= 0:
                yield name, f"must be above 0, got {value}"
        if not 0 <= self.dropout < 1:
            yield "dropout", f"must be in [0, 1), got {self.dropout}"
        if not self.target_modules:
            yield "target_modules", 'must name at least one layer, or be ["all-linear"]'
        if isinstance(self.layers, str) and not LAST.fullmatch(self.layers):
            yield (
                "layers",
                f'must be null, a list of block numbers, or "last N", got {self.layers!r}',
            )
        elif isinstance(self.layers, list) and (not self.layers or min(self.layers) < 0):
            yield "layers", f"must list blocks by their number from 0, got {self.layers}"


@dataclass(frozen=True, kw_only=True)
class FullAdapter:
    """Full fine-tuning: every weight of an unquantized base, in the type in which it is held."""

    method: Literal["full"]


AdapterConfig: TypeAlias = LoraAdapter | FullAdapter


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: int
    learning_rate: float
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
    """`adamw` is torch's, the others are bitsandbytes': with state in 8 bits (tensors of fewer than
    4,096 elements keep 32), or in memory that is paged out to the host (CUDA only)."""
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant"
    ]
    """As transformers names them; all begin with `warmup_steps` of linear warm-up."""
    warmup_steps: int
    weight_decay: float
    """Spares norms, biases and DoRA's magnitudes."""
    max_grad_norm: float
    micro_batch_size: int
    """Rows in one forward pass on one device."""
    global_batch_size: int
    """Rows in one optimizer step, on all devices together."""
    gradient_checkpointing: bool
    """Compute activations anew in the backward pass: less memory, the same losses, slower."""
    validation_steps: int
    """Steps between two looks at the validation loss; it is also taken at both ends."""
    early_stopping_patience: int | None
    """Stop after this many validations without improvement and keep the best one's weights; null:
    train to the end and keep the last."""

    def faults(self) -> Faults:
        for name in ("epochs", "micro_batch_size", "global_batch_size", "validation_steps"):
            if getattr(self, name) < 1:
                yield name, f"must be at least 1, got {getattr(self, name)}"
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                yield name, f"must be above 0, got {getattr(self, name)}"
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                yield name, f"must not be negative, got {getattr(self, name)}"
        if self.micro_batch_size > 0 and self.global_batch_size % self.micro_batch_size:
            yield "global_batch_size", "must be a multiple of `train.micro_batch_size`"
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            got = self.early_stopping_patience
            yield "early_stopping_patience", f"must be null or at least 1, got {got}"
