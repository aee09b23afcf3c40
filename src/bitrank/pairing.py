"""Which runs may be compared: those that differ in nothing but what is compared.

What was done to a run is told by its configuration and by what `train`, `measure` and the
evaluation of the adapter read from their live models. Along an axis, such as `precision.name`, two
runs are a pair when all of that is equal, apart from the axis itself and from what cannot but
follow from it: a 4-bit base has another hash, another rank another number of weights. Everything
else that differs, a seed, a type of the norms, the version of torch, refuses the pair by name.

Works on the points of a sweep and on single runs: whatever has a `params.yaml` and records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from bitrank.errors import UserError
from bitrank.projection import flatten, read_yaml
from bitrank.runs import Run, read_run
from bitrank.sweep_projection import read_sweep

READ = ("train", "measure", "evaluate-adapter")
"""The stages whose treatment is compared."""
ENVIRONMENT = ("packages", "hardware.cpu", "hardware.gpus")
"""What of the environment of `train` and `measure` must be equal. Commits need not be: a stage that
was restored tells of the commit that it first ran at, with the same code."""
PRODUCTS = ("adapter_hash", "merged_hash", "determinism")
"""Keys of a treatment that tell what came out of it, or how well it repeats."""
UNIMPORTANT = ("seed", "tracking")
"""Sections that decide nothing: `seed` only fills in `seeds`. Nor does any key `watch`."""
PRESETS = ("name", "method")
"""An axis with such an end chooses a whole section."""
KEPT = ("precision.weight_dtype", "precision.compute_dtype")
"""Whatever the precision, embeddings and norms must be held, and products computed, in one type."""
FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "precision": ("precision", "base_hash", "computed_on"),
    "adapter": ("adapter", "dtypes.adapter", "trainable", "first_weights_hash"),
    "seeds": ("seeds", "first_weights_hash"),
    "seed": ("seeds", "first_weights_hash"),
    "model": ("base_hash", "original_hash", "data_hash", "template_hash", "precision", "dtypes",
              "adapter", "trainable", "first_weights_hash", "tasks"),
    "data": ("data_hash", "template_hash", "num_rows", "num_steps", "planned_steps",
             "stopped_at_step", "tasks"),
    "train": ("optimizer", "num_steps", "planned_steps", "stopped_at_step",
              "gradient_accumulation_steps"),
}  # fmt: skip
"""By an axis's section: the keys of a treatment that follow from it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run with all that must be equal for it to be compared, by where that is told."""

    name: str
    run: Run = field(repr=False)
    facts: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Pair:
    first: Candidate
    second: Candidate
    values: tuple[str, str]
    """Of the axis, in the order of the runs."""
    differing: tuple[str, ...]
    """All in which they differ: what is compared, and what follows from it."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A run without a partner, beside the one that comes closest to being it."""

    first: Candidate
    second: Candidate
    values: tuple[str, str]
    differing: tuple[str, ...]
    """The fields that keep them apart."""

    def __str__(self) -> str:
        return (
            f"{self.first.name} and {self.second.name} are not compared, they also differ in "
            f"{', '.join(self.differing)}"
        )


@dataclass(frozen=True, kw_only=True)
class Pairing:
    axis: str
    pairs: Sequence[Pair]
    refusals: Sequence[Refusal]

    def between(self, first: str, second: str) -> list[Pair]:
        """The pairs of these two values of the axis, one a seed in a sweep over seeds."""
        return [pair for pair in self.pairs if pair.values == (first, second)]


def read_candidate(name: str, params: Path, results: Path) -> Candidate:
    """A single run.

    Raises:
        UserError: no `params.yaml`, no record, or one that cannot be read.
    """
    return make_candidate(name, read_run(results, {}), flatten(read_yaml(params)))


def make_candidate(name: str, run: Run, flat: Mapping[str, str]) -> Candidate:
    """Of a run that was read already, and its flattened `params.yaml`."""
    return Candidate(name=name, run=run, facts=dict(_facts(run, flat)))


def keep_apart(first: Candidate, second: Candidate, axes: Iterable[str]) -> list[str]:
    """The fields in which two runs differ beside these axes and what follows from them.

    A stage that only one of them has a record of says nothing of the other.
    """
    known = list(axes)
    untold = {stage for stage in READ for side in (first, second) if stage not in side.run.records}
    return [
        name
        for name in _differing(first, second)
        if not (_is_told_by_stage(name) and name.partition(".")[0] in untold)
        and all(_matters(name, axis) for axis in known)
    ]


def _is_told_by_stage(name: str) -> bool:
    return name.split(".")[1:2] in (["treatment"], ["result"], ["observation"])


def read_candidates(sweep: Path) -> list[Candidate]:
    """The points of a sweep that are done, in the order of its manifest.

    Raises:
        UserError: no sweep, or a point that cannot be read.
    """
    return [
        read_candidate(point.key, point.folder / "params.yaml", point.folder / "results")
        for point in read_sweep(sweep).points
        if point.status == "done"
    ]


def matched_pairs(candidates: Sequence[Candidate], axis: str) -> Pairing:
    """Pair what differs along the axis only; tell of each run that finds no partner why.

    `axis` is a key of `params.yaml`; a group's name stands for its choice (`precision`).

    Raises:
        UserError: no run has such a key.
    """
    key = _resolve(axis, candidates)
    values = sorted({c.facts[key] for c in candidates if key in c.facts}, key=_as_number)
    pairs: list[Pair] = []
    refusals: list[Refusal] = []
    for first, second in combinations(values, 2):
        sides = [[c for c in candidates if c.facts.get(key) == v] for v in (first, second)]
        matched = list(_match(sides[0], sides[1], key))
        pairs += [
            Pair(first=a, second=b, values=(first, second), differing=tuple(_differing(a, b)))
            for a, b in matched
        ]
        refusals += _refuse(sides[0], sides[1], key, matched, (first, second))
    return Pairing(axis=key, pairs=pairs, refusals=refusals)


def _facts(run: Run, flat: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from flat.items()
    for stage in READ:
        yield from _under(f"{stage}.treatment", run.find(stage, "treatment"))
    yield from _under(
        "train.result.first_weights_hash", run.find("train", "result", "first_weights_hash")
    )
    for stage in ("train", "measure"):
        for part in ENVIRONMENT:
            path = f"{stage}.observation.environment.{part}"
            yield from _under(path, run.find(*path.split(".")))


def _under(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if value is not None:
        yield from flatten(value, path).items()


def _resolve(axis: str, candidates: Sequence[Candidate]) -> str:
    for key in (axis, *(f"{axis}.{end}" for end in PRESETS)):
        if any(key in candidate.facts for candidate in candidates):
            return key
    raise UserError(f"no run has a parameter {axis!r} that they could be compared along")


def _as_number(value: str) -> tuple[int, float, str]:
    """Ranks in the order of their numbers, names in that of the alphabet."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def _match(
    first: Sequence[Candidate], second: Sequence[Candidate], axis: str
) -> Iterator[tuple[Candidate, Candidate]]:
    """Each run at most once: of equal runs the n-th goes with the n-th."""
    waiting: dict[tuple[tuple[str, str], ...], list[Candidate]] = {}
    for candidate in second:
        waiting.setdefault(_identity(candidate, axis), []).append(candidate)
    for candidate in first:
        partners = waiting.get(_identity(candidate, axis))
        if partners:
            yield candidate, partners.pop(0)


def _identity(candidate: Candidate, axis: str) -> tuple[tuple[str, str], ...]:
    """All that a partner must agree in."""
    return tuple(
        sorted((name, text) for name, text in candidate.facts.items() if _matters(name, axis))
    )


def _refuse(
    first: Sequence[Candidate],
    second: Sequence[Candidate],
    axis: str,
    matched: Sequence[tuple[Candidate, Candidate]],
    values: tuple[str, str],
) -> Iterator[Refusal]:
    paired = {id(candidate) for pair in matched for candidate in pair}
    told: set[tuple[int, int]] = set()
    for own, others, swapped in ((first, second, False), (second, first, True)):
        for candidate in own:
            if id(candidate) in paired:
                continue
            apart = {i: _apart(candidate, other, axis) for i, other in enumerate(others)}
            nearest = min(apart, key=lambda index: len(apart[index]))
            ends = (candidate, others[nearest])
            a, b = ends[::-1] if swapped else ends
            # One that only lacks a free partner differs in nothing: it is a repeat too many.
            differing = tuple(apart[nearest]) or ("the number of repeats",)
            if (id(a), id(b)) not in told:
                told.add((id(a), id(b)))
                yield Refusal(first=a, second=b, values=values, differing=differing)


def _apart(first: Candidate, second: Candidate, axis: str) -> list[str]:
    return [name for name in _differing(first, second) if _matters(name, axis)]


def _differing(first: Candidate, second: Candidate) -> list[str]:
    """Sorted; what only one of the two tells is a difference too."""
    names = {*first.facts, *second.facts}
    return sorted(
        name
        for name in names
        if not _is_unimportant(name) and first.facts.get(name) != second.facts.get(name)
    )


def _is_unimportant(name: str) -> bool:
    first, *others = name.split(".")
    if others[:1] == ["treatment"]:
        return others[1] in PRODUCTS
    return first in UNIMPORTANT or others[-1:] == ["watch"]


def _matters(name: str, axis: str) -> bool:
    """Whether a fact must be equal in runs that are compared along the axis."""
    if name == axis or _is_unimportant(name):
        return False
    section, _, end = axis.partition(".")
    whole = not end or end in PRESETS
    stage, _, rest = name.partition(".")
    part, _, key = rest.partition(".")
    if part in ("treatment", "result"):
        follows = any(f"{key}.".startswith(f"{one}.") for one in FOLLOWS.get(section, ()))
        return not follows and (whole or key.rpartition(".")[2] != end)
    if part == "observation":
        return True
    chosen = stage == ("seeds" if section == "seed" else section)
    return not (chosen and whole) or name in KEPT
