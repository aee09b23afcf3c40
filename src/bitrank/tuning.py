"""How an adapter is trained: the section `train` of `params.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitrank.pins import Faults


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
