"""The points of a sweep: what is varied, what each point is called, and its whole configuration.

A sweep's name ends in six digits of a hash of the code and of what is not varied: the same command
finds its sweep again, more values extend it, changed code begins a new one. A point's key ends in
six digits of its configuration's hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from bitrank import composition, identity
from bitrank.errors import UserError
from bitrank.projection import flatten, name_run, parse_yaml

DIGITS = 6
OF_THE_DRIVER = ("hydra", "sweep")
"""Sections that say how a sweep runs: no point's configuration has them."""
IN_EVERY_KEY = {"precision", "precision.name", "adapter", "adapter.method", "adapter.rank", "seed"}
MOST_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class Point:
    key: str
    overrides: tuple[str, ...]
    """What tells it from the other points, as one would type it."""
    text: str
    """Its `params.yaml`."""

    @property
    def params(self) -> Any:
        return parse_yaml(self.text)


@dataclass(frozen=True, kw_only=True)
class Grid:
    axes: Mapping[str, Sequence[str]]
    """The values of what is varied."""
    fixed: tuple[str, ...]
    """The overrides that all points have."""
    points: Sequence[Point]

    def name_sweep(self, chosen: str | None, code_hash: str) -> str:
        """`chosen`, or the experiment's name, or what is varied; and the digits."""
        experiments = [o.partition("=")[2] for o in self.fixed if o.startswith("experiment=")]
        varied = "-".join(axis.rpartition(".")[2] for axis in self.axes)
        name = _tidy(chosen or "-".join([*experiments, *([varied] if varied else [])]) or "point")
        return f"{name}-{identity.hash_json([code_hash, sorted(self.fixed)])[:DIGITS]}"


def expand(arguments: Sequence[str]) -> Grid:
    """Compose every point of the product of all values.

    `arguments`: overrides in Hydra's grammar; of two for one key the later holds.

    Raises:
        UserError: an override that cannot be read, or the faults of all points at once.
    """
    fixed, axes = read_axes(arguments)
    points: dict[str, Point] = {}
    faults: dict[str, list[str]] = {}
    with composition.composing() as compose_one:
        compose = composition.remembering(compose_one)
        for values in product(*axes.values()):
            own = tuple(f"{key}={value}" for key, value in zip(axes, values, strict=True))
            try:
                point = _make_point(own, compose([*fixed, *own]))
            except UserError as error:
                faults.setdefault(str(error), []).append(" ".join(own) or "the only point")
            else:
                points.setdefault(point.key, point)
    if faults:
        raise UserError(_tell(faults, len(points)))
    names = {key.lstrip("+"): values for key, values in axes.items()}
    return Grid(axes=names, fixed=fixed, points=list(points.values()))


def read_axes(arguments: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """What all points have, as overrides; and the values of what is varied.

    Raises:
        UserError: an override that cannot be read.
    """
    given = {o.get_key_element(): o for o in _parse(arguments)}
    swept = {key: o for key, o in given.items() if o.is_sweep_override()}
    fixed = tuple(_write(o) for key, o in given.items() if key not in swept)
    return fixed, {key: _values(o) for key, o in swept.items()}


def _parse(arguments: Sequence[str]) -> list[Override]:
    try:
        overrides = OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise UserError(f"cannot read the overrides: {' '.join(str(error).split())}") from None
    return [o for o in overrides if o.key_or_group.split(".")[0].split("/")[0] not in OF_THE_DRIVER]


def _write(override: Override) -> str:
    if override.is_delete():
        return str(override.input_line)
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def _values(override: Override) -> list[str]:
    if not override.is_discrete_sweep():
        raise UserError(
            f"`{override.input_line}` names no values to try: give them, such as 1,2,3 or "
            "range(1,4)"
        )
    return list(override.sweep_string_iterator())


def _make_point(own: tuple[str, ...], text: str) -> Point:
    values = flatten(parse_yaml(text))
    digits = identity.hash_text(text)[:DIGITS]
    return Point(key=f"{name_point(values, own)}-{digits}", overrides=own, text=text)


def name_point(values: Mapping[str, str], own: Iterable[str]) -> str:
    """Precision, rank and seed, and what else is varied: `nf4-r8-s0-learning_rate0.001`."""
    others = [
        _tidy(f"{key.lstrip('+').replace('/', '.').rpartition('.')[2]}{value}")
        for key, _, value in (o.partition("=") for o in own)
        if key.lstrip("+") not in IN_EVERY_KEY
    ]
    return _tidy("-".join([name_run(values), *others]))[:MOST_CHARACTERS]


def _tidy(name: str) -> str:
    """A name for folders, in letters that no file system or shell minds."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")


def _tell(faults: Mapping[str, Sequence[str]], num_good: int) -> str:
    num_bad = sum(map(len, faults.values()))
    lines = [
        f"\n{', '.join(points[:3])}{' and others' if len(points) > 3 else ''}: {reason}"
        for reason, points in faults.items()
    ]
    return f"{num_bad} of {num_bad + num_good} points cannot run, so none is started:" + "".join(
        lines
    )
