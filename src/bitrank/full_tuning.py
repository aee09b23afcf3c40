"""Full fine-tuning: every weight of an unquantized base is trained, in the type it is held in.

What is saved are the trained weights themselves and not their difference from the base, since
W + (W' - W) need not be W' in floating point. A tied weight is saved once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bitrank import models, weights

FILE = "trained.safetensors"


def unfreeze(base: PreTrainedModel) -> PreTrainedModel:
    trainable: PreTrainedModel = base.requires_grad_(True)
    return trainable


def save(model: PreTrainedModel, folder: Path, state: Mapping[str, torch.Tensor] | None) -> None:
    """Write each trained weight once; `state` holds them where `model` has only this rank's."""
    names = [name for name, _ in model.named_parameters()]
    held = model.state_dict() if state is None else state
    save_file({n: held[n].detach().cpu().contiguous() for n in names}, folder / FILE,
              metadata={"format": "pt"})  # fmt: skip


def is_saved_in(folder: Path) -> bool:
    return (folder / FILE).is_file()


def load(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put the saved weights in the place of the base's; tied ones follow."""
    saved = load_file(folder / FILE)
    own = dict(base.named_parameters())
    for name, tensor in saved.items():
        own[name].data.copy_(tensor)
    return models.frozen(base)


def copy_weights(tuned: PreTrainedModel, target: PreTrainedModel) -> int:
    """Give `target` all weights of `tuned`; return how many linear layers that changes."""
    target.load_state_dict(tuned.state_dict())
    return len(weights.linear_layers(target))


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """What is trainable in the live model: the proof of treatment."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "method": "full",
        "num_adapted_layers": len(weights.linear_layers(model)),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in trainable}),
        "num_trainable_parameters": sum(p.numel() for p in trainable),
        "num_frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
    }
