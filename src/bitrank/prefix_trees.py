"""Rows of tokens that begin alike, computed in one forward pass without computing anything twice.

Rows become a tree: a node is a token after all the tokens before it, so a beginning that rows share
is there once. A forward pass over the nodes as one sequence, in which a node looks at its ancestors
and at itself only and stands at its own depth, gives each row's logits, and needs no padding (tree
attention: Miao et al. 2024, "SpecInfer", section 4.2). The model's `forward` must take
`position_ids` and a mask of four dimensions, as most in transformers do. Which ones is not assumed:
`reads_trees` tries.

Sums run over other numbers of keys than in a row of its own, so values agree up to rounding; the
same rows always give the same trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

Row: TypeAlias = tuple[int, ...]

NODES = 256
"""A matrix product of a small model on a CPU is as fast per token as with more, and the time for
attention, which passes over all pairs of nodes, still small."""
TOLERANCE = 2e-4
"""In nats; rounding in fp32 stays far below, another mask or position far above."""


class Tree:
    """Some rows, which must be added in sorted order."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.paths: list[list[int]] = []
        """The nodes of each row, from the root on; nodes are numbered as they come."""
        self.tokens: list[int] = []

    def add(self, row: Row) -> None:
        shared = self._shared(row)
        new = range(len(self.tokens), len(self.tokens) + len(row) - shared)
        self.paths.append([*(self.paths[-1][:shared] if self.paths else []), *new])
        self.tokens += row[shared:]
        self.rows.append(row)

    def takes(self, row: Row, most_rows: int) -> bool:
        """Whether the row belongs in this tree rather than in the next one.

        A long row comes in where the better part of it is there already.
        """
        new = len(row) - self._shared(row)
        nodes = len(self.tokens) + new
        alike = 2 * new <= len(row) and nodes <= 2 * len(row)
        return not self.rows or (len(self.rows) < most_rows and (nodes <= NODES or alike))

    def _shared(self, row: Row) -> int:
        last = self.rows[-1] if self.rows else ()
        both = zip(last, row, strict=False)
        return next((at for at, (one, other) in enumerate(both) if one != other),
                    min(len(last), len(row)))  # fmt: skip

    def mask(self) -> torch.Tensor:
        """(nodes, nodes): true where the first may look at the second."""
        seen = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        for path in self.paths:
            nodes = torch.tensor(path)
            seen[nodes.unsqueeze(1), nodes] |= torch.ones(len(path), len(path)).tril().bool()
        return seen

    def depths(self) -> torch.Tensor:
        """(nodes): the place of each node in its row."""
        depths = torch.empty(len(self.tokens), dtype=torch.long)
        for path in self.paths:
            depths[path] = torch.arange(len(path))
        return depths


def grow(rows: Sequence[Row], most_rows: int) -> Iterator[Tree]:
    """All rows in as few trees as are fast, none with more than `most_rows` rows."""
    tree = Tree()
    for row in sorted(rows):
        if not tree.takes(row, most_rows):
            yield tree
            tree = Tree()
        tree.add(row)
    yield tree


def target_logits(
    model: torch.nn.Module, tree: Tree, num_targets: Sequence[int], device: torch.device
) -> list[torch.Tensor]:
    """For each row, the logits after its last `num_targets` tokens, (targets, vocabulary)."""
    ends = [path[-count:] for path, count in zip(tree.paths, num_targets, strict=True)]
    kept = sorted({node for nodes in ends for node in nodes})
    place = {node: index for index, node in enumerate(kept)}
    given: dict[str, Any] = {}
    if len(tree.rows) > 1:  # else it is a plain row, for which attention has faster ways
        given = {
            "attention_mask": tree.mask()[None, None].to(device),
            "position_ids": tree.depths()[None].to(device),
        }
    ids = torch.tensor([tree.tokens], device=device)
    with torch.no_grad():
        logits = model(
            ids, **given, logits_to_keep=torch.tensor(kept, device=device), use_cache=False
        ).logits[0]
    return [logits[[place[node] for node in nodes]] for nodes in ends]


def reads_trees(model: torch.nn.Module, row: Row, device: torch.device) -> bool:
    """Whether the model gives a row's end the same in a tree as alone.

    Not so: recurrent models, positions that come from the mask, windows shorter than the row. Nor
    anything but fp32, where the rounding alone could change which choice is likelier; int8 layers
    quantize the activations of all rows together.
    """
    if not _computes_in_fp32(model) or getattr(model, "_is_stateful", False):  # recurrent
        return False
    alone, branched = Tree(), Tree()
    alone.add(row)
    # Another row branches off half way, and its nodes come first.
    half = len(row) // 2
    branched.add((*row[:half], row[half] - 1 if row[half] else 1))
    branched.add(row)
    (expected,) = target_logits(model, alone, [1], device)
    try:
        found = target_logits(model, branched, [1, 1], device)[1]
    except (RuntimeError, ValueError, TypeError, IndexError):  # it takes no such mask or positions
        return False
    difference = (found.log_softmax(-1) - expected.log_softmax(-1)).abs().max()
    return bool(difference < TOLERANCE)


def _computes_in_fp32(model: torch.nn.Module) -> bool:
    held = {parameter.dtype for parameter in model.parameters()}
    computed = {getattr(module, "compute_dtype", torch.float32) for module in model.modules()}
    return held | computed <= {torch.float32, torch.uint8}  # uint8 are packed 4-bit weights
