"""The configurations that `bitrank plan` lays side by side: those that are asked for, or the usual.

`precision=fp32,nf4 adapter.rank=8,64` asks for a grid, as for a sweep. Where nothing is varied, the
planner does it: full fine-tuning and LoRA, each precision, activations kept and computed anew,
as far as the overrides leave that open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from omegaconf import OmegaConf

from bitrank import composition, config, grid
from bitrank.accelerators import Accelerator
from bitrank.errors import ConfigError, UserError

METHODS = ("full", "lora")
PRECISIONS = ("fp32", "int8", "nf4")
CHECKPOINTING = "train.gradient_checkpointing"


@dataclass(frozen=True, kw_only=True)
class Variant:
    overrides: tuple[str, ...]
    """What tells it from the others, as one would type it."""
    run: config.RunConfig | None
    reason: str = ""
    """Why there is no such run."""


def list_variants(arguments: Sequence[str], device: Accelerator) -> list[Variant]:
    """Compose what is to be planned.

    Raises:
        UserError: an override that cannot be read, or none of the configurations is possible.
    """
    fixed, axes = grid.read_axes(arguments)
    if device.kind == "gpu" and not any(one.startswith("runtime.device=") for one in fixed):
        fixed = (*fixed, "runtime.device=cuda")
    asked = bool(axes)
    choices = list(_grid(axes) if asked else _usual(fixed, device))
    found: list[Variant] = []
    with composition.composing() as compose_one:
        for own in choices:
            try:
                text = compose_one([*fixed, *own])
            except UserError as error:
                found.append(Variant(overrides=own, run=None, reason=_first_fault(error)))
            else:
                values = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
                found.append(Variant(overrides=own, run=config.parse(values)))
    if not any(variant.run for variant in found):
        raise UserError(found[0].reason)
    return found if asked else [variant for variant in found if variant.run]


def _grid(axes: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    for values in product(*axes.values()):
        yield tuple(f"{key}={value}" for key, value in zip(axes, values, strict=True))


def _usual(fixed: Sequence[str], device: Accelerator) -> Iterator[tuple[str, ...]]:
    """Of what the overrides leave open; in the device's own type where it is ours to choose."""
    keys = [one.partition("=")[0] for one in fixed]

    def is_open(group: str) -> bool:
        return not any(key == group or key.startswith(f"{group}.") for key in keys)

    types: tuple[str, ...] = ()
    if device.kind == "gpu" and is_open("precision"):
        kinds = ("weight_dtype", "compute_dtype")
        types = tuple(f"precision.{kind}={device.dtype}" for kind in kinds)
    choices = [
        [(f"adapter={method}",) for method in METHODS] if is_open("adapter") else [()],
        [(f"precision={name}", *types) for name in PRECISIONS] if is_open("precision") else [()],
        [(f"{CHECKPOINTING}={said}",) for said in ("false", "true")]
        if is_open(CHECKPOINTING) else [()],
    ]  # fmt: skip
    for parts in product(*choices):
        yield tuple(override for part in parts for override in part)


def _first_fault(error: UserError) -> str:
    faults = error.faults if isinstance(error, ConfigError) else [str(error)]
    return "; ".join(faults)
