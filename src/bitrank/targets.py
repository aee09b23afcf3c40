"""Which layers of a base get an adapter: by name, by group, by block."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedModel

from bitrank import weights
from bitrank.adapter_config import GROUPS, LAST
from bitrank.errors import UserError


def find(
    base: PreTrainedModel, target_modules: list[str], layers: list[int] | str | None
) -> dict[str, weights.Linear]:
    """The linear layers that `adapter.target_modules` and `adapter.layers` choose, by name.

    Raises:
        UserError: a name or a block that the base does not have, or nothing is chosen.
    """
    linear = weights.linear_layers(base)
    blocks = find_blocks(base, layers)
    known = sorted({end_of(name) for name in linear})
    unknown = [t for t in target_modules if t not in known and t not in GROUPS]
    if unknown:
        raise UserError(
            f"`adapter.target_modules`: the base has no {', '.join(unknown)}; it has "
            f"{', '.join(known)}, and the groups {', '.join(GROUPS)}"
        )
    chosen = {
        name: layer
        for name, layer in linear.items()
        if {end_of(name), *groups_of(name)} & set(target_modules)
        and (layers is None or block_of(name) in blocks)
    }
    if not chosen:
        raise UserError(
            f"`adapter.target_modules` {target_modules} and `adapter.layers` "
            f"{layers} choose no layer; the base has {', '.join(known) or 'no linear ones'}"
        )
    return chosen


def find_blocks(base: PreTrainedModel, wanted: list[int] | str | None) -> set[int]:
    """The numbers of the blocks that `adapter.layers` chooses.

    Raises:
        UserError: a block that the base does not have.
    """
    found = (block_of(name) for name in weights.linear_layers(base))
    blocks = {block for block in found if block is not None}
    if wanted is None:
        return blocks
    count = len(blocks)
    if isinstance(wanted, str):
        last = LAST.fullmatch(wanted)
        asked = int(last.group(1)) if last else 0
        if not 1 <= asked <= count:
            raise UserError(f"`adapter.layers` is {wanted!r}, the base has {count} blocks")
        return set(range(count - asked, count))
    beyond = sorted(set(wanted) - blocks)
    if beyond:
        raise UserError(
            f"`adapter.layers` names {', '.join(map(str, beyond))}, the base's blocks are 0 to "
            f"{count - 1}"
        )
    return set(wanted)


def end_of(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def block_of(name: str) -> int | None:
    """Number of the block that a layer lies in: the first one in its name; None outside of all."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else None


def groups_of(name: str) -> set[str]:
    """In a block, what does not lie in a part with "attn" or "attention" in its name feeds forward.

    So it is in Llama, Qwen and Mistral (`self_attn`, `mlp`), Falcon (`self_attention`, `mlp`),
    GPT-NeoX (`attention`, `mlp`) and OPT (`self_attn`, `fc1`, `fc2`).
    """
    if re.search(r"attn|attention", name):
        return {"all-linear", "attention"}
    return {"all-linear", "feed-forward"} if block_of(name) is not None else {"all-linear"}


def names_for_peft(base: PreTrainedModel, targets: Mapping[str, weights.Linear]) -> list[str]:
    """The ends of the names where they mean just these layers, and the whole names otherwise."""
    ends = {end_of(name) for name in targets}
    reached = {name for name, _ in base.named_modules() if end_of(name) in ends}
    return sorted(ends if reached == set(targets) else targets)
