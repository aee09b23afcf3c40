"""What `dvc.yaml` says for one configuration: which stages two sweep points have in common.

A stage's signature covers its command, the values that it tracks, and everything upstream. Points
with equal signatures share the stage: DVC's run-cache computes it once, if the points do not start
it at the same time. `plan_waves` keeps them from that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from bitrank import identity, paths
from bitrank.errors import UserError

END = "report"
"""The stage that needs all others of a point. `record` comes after it and publishes to MLflow."""

TEMPLATE = re.compile(r"\$\{([\w.]+)\}")
"""DVC's, for a value of `params.yaml` or of a matrix."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    """As DVC addresses it, `baseline@original`."""
    inputs: frozenset[str]
    """Paths of its deps that no stage makes: code, and rows or weights of the user's own."""
    upstream: tuple[str, ...]
    """Names of all stages that it needs, in the order in which they run."""
    signature: str


def load(path: Path = Path("dvc.yaml")) -> Any:
    """The pipeline as it is written.

    Raises:
        UserError: it is not there, is no YAML, or has no stage `END`.
    """
    try:
        pipeline = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run this in the project's root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if END not in pipeline.get("stages", {}):
        raise UserError(f"{path} has no stage {END!r}, which a sweep ends with")
    return pipeline


def find_stages(pipeline: Any, params: Mapping[str, Any]) -> dict[str, Stage]:
    """The stages that `END` needs and itself, by name, in an order in which they can run."""
    entries = dict(expand(pipeline, params))
    makers = {out: name for name, entry in entries.items() for out in entry["makes"]}
    stages: dict[str, Stage] = {}

    def add(name: str) -> None:
        if name in stages:
            return
        entry = entries[name]
        direct = sorted({makers[dep] for dep in entry["needs"] if dep in makers})
        for maker in direct:
            add(maker)
        upstream = {n for maker in direct for n in (*stages[maker].upstream, maker)}
        signed = [entry, [stages[maker].signature for maker in direct]]
        stages[name] = Stage(
            name=name,
            inputs=frozenset(dep for dep in entry["needs"] if dep not in makers),
            upstream=tuple(n for n in stages if n in upstream),
            signature=identity.hash_json(signed),
        )

    add(END)
    return stages


def expand(pipeline: Any, params: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, entry) of each stage, with its matrix and its templates filled in.

    An entry has its command `cmd`, the paths that it `needs` and `makes`, and the `values` of
    `params.yaml` that it tracks, by their dotted keys.
    """
    for name, body in pipeline["stages"].items():
        axes = body.get("matrix", {})
        for values in product(*axes.values()):
            known = {**params, "item": dict(zip(axes, values, strict=True))}
            made = [out for kind in ("outs", "metrics", "plots") for out in body.get(kind, [])]
            tracked = [key for key in body.get("params", []) if isinstance(key, str)]
            yield (
                "@".join([name, *(["-".join(values)] if values else [])]),
                {
                    "cmd": _fill(body["cmd"], known),
                    "needs": [_fill(dep, known) for dep in body.get("deps", [])],
                    # An out with options is a mapping of its path to them.
                    "makes": [
                        _fill(o if isinstance(o, str) else next(iter(o)), known) for o in made
                    ],
                    "values": {key: _look_up(params, key) for key in tracked},
                },
            )


def _fill(text: str, known: Mapping[str, Any]) -> str:
    return TEMPLATE.sub(lambda match: str(_look_up(known, match[1])), text)


def _look_up(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params.get(part) if isinstance(params, Mapping) else None
    return params


def plan_waves(points: Mapping[str, Mapping[str, Stage]]) -> list[list[tuple[str, list[str]]]]:
    """Jobs (point, stages) that may run at the same time, wave by wave; nothing is shared in one.

    A wave computes shared stages whose own inputs are there, each at the first point that has it.
    After the last one every point can run whole: what it still computes is its alone.
    """
    owners: dict[str, list[str]] = defaultdict(list)
    for point, stages in points.items():
        for stage in stages.values():
            owners[stage.signature].append(point)
    waiting = {signature for signature, having in owners.items() if len(having) > 1}
    waves = []
    while waiting:
        claimed: dict[str, str] = {}
        wave = []
        for point, stages in points.items():
            mine = list(_claim(point, stages, waiting, claimed))
            if mine:
                wave.append((point, mine))
        waves.append(wave)
        waiting -= set(claimed)
    return waves


def _claim(
    point: str, stages: Mapping[str, Stage], waiting: set[str], claimed: dict[str, str]
) -> Iterator[str]:
    for name, stage in stages.items():
        needed = {stages[n].signature for n in stage.upstream} & waiting
        free = stage.signature in waiting and stage.signature not in claimed
        if free and all(claimed.get(signature) == point for signature in needed):
            claimed[stage.signature] = point
            yield name


def own_inputs(stages: Mapping[str, Stage], code: Sequence[str]) -> set[Path]:
    """Inputs of any stage beside the code: rows and weights of the user's own, as configured."""
    found = {Path(name) for stage in stages.values() for name in stage.inputs}
    return {p for p in found if p.parts[0] not in code and p != paths.HARDWARE}
