"""The adapters of this project: that of the run in `data/results`, and those of kept sweeps.

What is told of one is read from its records, so that it is known where its weights are not. They
are at hand where `data/adapter` has just these, or where DVC's cache has what the point's lock
names: a sweep leaves them nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitrank import doctor, findings, paths
from bitrank.errors import UserError
from bitrank.projection import read_yaml
from bitrank.runs import ANSWERING, CONTROL, TASK, Run, read_run
from bitrank.sweep_projection import MANIFEST, Point, Sweep, read_sweep

RUN = "run"
"""How the adapter of `data/results` is called; those of a sweep are `<sweep>/<point>`."""
STAMP = "bitrank.json"
FEWEST_DIGITS = 6
"""Of a hash that is to name an adapter."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    where: str
    files: Mapping[str, Path]
    """By their name in the adapter's folder."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    name: str
    folder: Path
    """Where the records lie, as `results`, and the item logs, as `items`."""
    run: Run
    params: Path
    lock: Path
    overrides: Sequence[str] | None
    """What the sweep and the point were asked for; null where no sweep was."""

    @property
    def adapter_hash(self) -> str:
        """sha256 of the weights by content, as `train` recorded it."""
        return str(self.run.find("train", "result", "adapter_hash"))

    def read_with_items(self) -> Run:
        """Raises UserError: an item log is not the one that its record names."""
        logs = {subject: self.folder / "items" / subject for subject in ANSWERING}
        return read_run(self.folder / "results", logs)

    @cached_property
    def weights(self) -> Weights | None:
        """Where they lie; null: nowhere here."""
        return _in_workspace(self.adapter_hash) or _in_cache(self.lock)

    def describe(self) -> dict[str, Any]:
        """All that is told of it, for JSON; unknown is null."""
        find = self.run.find
        hashes = ("original_hash", "base_hash", "data_hash", "template_hash")
        return {
            "name": self.name,
            "base": {key: find("fetch", "treatment", key)
                     for key in ("name", "provenance", "license")}
            | {"source": find("fetch", "treatment", "source"),
               "precision": findings.describe_base(self.run)},
            "method": self.run.method,
            "rank": find("train", "treatment", "adapter", "rank"),
            "data": find("prepare", "treatment", "name"),
            "num_rows": find("train", "treatment", "num_rows"),
            "seeds": find("train", "treatment", "seeds"),
            "scores": scores_of(self.run),
            "hashes": {key: find("train", "treatment", key) for key in hashes}
            | {"adapter_hash": self.adapter_hash},
            "adapter_bytes": find("train", "result", "adapter_bytes"),
            "weights": None if self.weights is None else self.weights.where,
        }  # fmt: skip


def scores_of(run: Run) -> dict[str, dict[str, Any]]:
    """Each subject's metrics by task, as they were recorded."""
    found = {
        subject: dict(tasks)
        for subject in paths.SUBJECTS
        if (tasks := run.find(f"evaluate-{subject}", "result", "tasks"))
    }
    control = run.records.get(CONTROL)
    if control is not None:
        plain = {key: value for key, value in control.result.items() if key != "items"}
        found[CONTROL] = {TASK: plain}
    return found


def list_adapters() -> tuple[list[Adapter], list[str]]:
    """Each adapter once, that of the run first; and what could not be read, with the reason."""
    found: dict[str, Adapter] = {}
    faults: list[str] = []
    if paths.record("train").is_file():
        _add(found, faults, RUN, paths.DATA, Path(), None)
    for folder in (paths.SWEEPS, paths.PAPERS):
        for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
            try:
                sweep = read_sweep(manifest.parent)
            except UserError as error:
                faults.append(str(error))
                continue
            for name, point in _trained(sweep):
                if name not in found:
                    asked = [*sweep.manifest.get("overrides", []), *point.entry["overrides"]]
                    _add(found, faults, name, point.folder, point.folder, asked)
    return list(found.values()), faults


def _trained(sweep: Sweep) -> Iterator[tuple[str, Point]]:
    """Points that came as far as an adapter, whatever became of them afterwards."""
    for point in sweep.points:
        if paths.record("train", point.folder / "results").is_file():
            yield f"{sweep.id}/{point.key}", point


def _add(
    found: dict[str, Adapter], faults: list[str], name: str, folder: Path, root: Path,
    overrides: Sequence[str] | None,
) -> None:  # fmt: skip
    try:
        run = read_run(folder / "results", {})
    except UserError as error:
        faults.append(f"{name}: {error}")
        return
    found[name] = Adapter(
        name=name, folder=folder, run=run, overrides=overrides,
        params=root / "params.yaml", lock=root / "dvc.lock",
    )  # fmt: skip


def find_adapter(which: str) -> Adapter:
    """The adapter of this name, or whose hash begins so; of equal ones, one that is at hand.

    Raises:
        UserError: there is none, or several different ones.
    """
    adapters, _ = list_adapters()
    named = [adapter for adapter in adapters if adapter.name == which]
    if named:
        return named[0]
    begin = which if len(which) >= FEWEST_DIGITS else None
    same = [a for a in adapters if begin is not None and a.adapter_hash.startswith(begin)]
    if len({adapter.adapter_hash for adapter in same}) > 1:
        names = ", ".join(adapter.name for adapter in same)
        raise UserError(f"{which} begins the hash of different adapters: {names}; name one")
    if not same:
        raise UserError(
            f"no adapter is called {which!r}, and no adapter's hash begins so (at least "
            f"{FEWEST_DIGITS} digits): `bitrank adapters` lists those of this project"
        )
    return next((adapter for adapter in same if adapter.weights is not None), same[0])


def _in_workspace(adapter_hash: str) -> Weights | None:
    try:
        stamp = json.loads((paths.ADAPTER / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, Mapping) or stamp.get("adapter_hash") != adapter_hash:
        return None
    files = {p.name: p for p in sorted(paths.ADAPTER.iterdir()) if p.is_file()}
    return Weights(where="workspace", files=files)


def _in_cache(lock: Path) -> Weights | None:
    """What a lock names as `train`'s output, where DVC's cache has all of it."""
    try:
        outs = read_yaml(lock)["stages"]["train"]["outs"]
        (md5,) = [out["md5"] for out in outs if out["path"] == paths.ADAPTER.as_posix()]
    except (UserError, KeyError, TypeError, ValueError):
        return None  # no lock, or the stage's outputs are not in it yet
    return _read_cached(doctor.cache_folder() / "files" / "md5", str(md5))


def _read_cached(objects: Path, md5: str) -> Weights | None:
    try:
        members = json.loads(_object(objects, md5).read_text(encoding="utf-8"))
        files = {str(m["relpath"]): _object(objects, str(m["md5"])) for m in members}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = files and all(file.is_file() for file in files.values())
    return Weights(where="DVC cache", files=files) if whole else None


def _object(objects: Path, md5: str) -> Path:
    return objects / md5[:2] / md5[2:]
