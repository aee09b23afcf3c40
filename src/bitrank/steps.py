"""What a training step is made of beside its loss: the optimizer, and what it keeps for going back.

Training and measurement share this module, so what is timed is the step that trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from bitrank.errors import UserError
from bitrank.tuning import TrainConfig

UNDECAYED = re.compile(r"bias$|norm|\bln_|lora_magnitude|ia3_l|vera_lambda")
"""Names of the parameters that scale or shift a result, which shrinking would distort."""


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over all that is trainable in `model`, in the configured form.

    Raises:
        UserError: a paged optimizer on a device without CUDA.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trainable if not UNDECAYED.search(name)]
    spared = [p for name, p in trainable if UNDECAYED.search(name)]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, config.weight_decay), (spared, 0.0))
        if parameters
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    device = trainable[0][1].device.type
    if config.optimizer.startswith("paged_") and device != "cuda":
        raise UserError(
            f"`train.optimizer` {config.optimizer} needs CUDA, the model is on {device}: take "
            "adamw or adamw_8bit"
        )
    return _make_bitsandbytes(groups, config)


def _make_bitsandbytes(
    groups: Iterable[dict[str, Any]], config: TrainConfig
) -> torch.optim.Optimizer:
    from bitsandbytes import optim  # `weights` is the door to its layers, this to its optimizers

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "paged_adamw_32bit": optim.PagedAdamW32bit,
    }
    made: torch.optim.Optimizer = kinds[config.optimizer](groups, lr=config.learning_rate)
    return made


def keep_activations(base: PreTrainedModel, config: TrainConfig) -> None:
    """Set whether the blocks of `base` keep their activations or compute them anew.

    To be called when the adapter is attached: before, PEFT would do what is undone here.
    transformers also makes the embeddings' output require a gradient, which only the reentrant form
    needs: it would send the backward pass through blocks below the lowest adapter for nothing.
    """
    if config.gradient_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
        base.disable_input_require_grads()
