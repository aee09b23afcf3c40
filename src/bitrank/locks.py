"""A point's `dvc.lock` held against the pipeline of a commit, and against the files that were kept.

The lock names each command, each value of `params.yaml` that a stage tracks, and each file that it
read or wrote by md5. So it ties what is kept of a point to the code at the commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitrank import identity, paths, pipeline
from bitrank.errors import UserError
from bitrank.inspection import Fault, Inspection, short
from bitrank.points import KEPT
from bitrank.projection import read_yaml

LOCK = "dvc.lock"
HASH, STAGES = "lock files", "stages and commands"
VALUES, CODE = "values of params.yaml in locks", "code files read by stages"
WITHOUT_REPORT = "points without a report of their own, which their records give"
PASSED, FILES = "artifacts passed between stages", "records, items and reports kept"


def inspect_lock(
    key: str, folder: Path, named: str | None, commit: Path | None, found: Inspection
) -> None:
    """Look at the lock in a point's folder.

    `named`: the lock's sha256 in the manifest. `commit`: a folder with the commit's files; null
    where it cannot be had, and then the lock is held against the other files alone.
    """
    file = folder / LOCK
    there = identity.hash_file(file) if file.is_file() else None
    what = "is missing" if there is None else f"is {short(there)}"
    detail = f"{what}, sweep.json names {short(named)}"
    found.expect(HASH, there is not None and there == named, Fault(key, LOCK, "sha256", detail))
    if there is None:
        return
    try:
        stages = read_yaml(file)["stages"]
        params = read_yaml(folder / "params.yaml")
        if commit is not None:
            _inspect_stages(key, stages, _expect_stages(commit, params), found)
        _inspect_values(key, stages, params, found)
        _inspect_inputs(key, stages, commit, found)
        _inspect_kept(key, stages, folder, found)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        found.expect(STAGES, False, Fault(key, LOCK, "", f"cannot be read: {error}"))


def hash_path(path: Path) -> str | None:
    """DVC's md5 of a file or a folder; null where there is none."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if not path.is_dir():
        return None
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    listed = [{"md5": hash_path(path / name), "relpath": name} for name in names]
    text = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def _expect_stages(commit: Path, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    written = pipeline.load(commit / "dvc.yaml")
    needed = pipeline.find_stages(written, params)
    return {name: entry for name, entry in pipeline.expand(written, params) if name in needed}


def _inspect_stages(
    key: str,
    stages: Mapping[str, Any],
    expected: Mapping[str, Mapping[str, Any]],
    found: Inspection,
) -> None:
    """The stages, and of each command, inputs, outputs and tracked keys, are the commit's."""
    for name in dict.fromkeys([*expected, *stages]):
        if name not in stages or name not in expected:
            where = "the commit's dvc.yaml" if name in stages else "the lock"
            fault = Fault(key, LOCK, f"stages.{name}", f"is not in {where}")
            found.expect(STAGES, False, fault)
            continue
        entry, of_commit = stages[name], expected[name]
        pairs = {
            "cmd": (entry["cmd"], of_commit["cmd"]),
            "deps": (_paths(entry, "deps"), sorted(set(of_commit["needs"]))),
            "outs": (_paths(entry, "outs"), sorted(set(of_commit["makes"]))),
            "params": (sorted(_tracked(entry)), sorted(of_commit["values"])),
        }
        for part, (locked, of_dvc) in pairs.items():
            detail = f"is {_differ(locked, of_dvc)} at the commit"
            fault = Fault(key, LOCK, f"stages.{name}.{part}", detail)
            found.expect(STAGES, locked == of_dvc, fault)


def _differ(locked: Any, of_commit: Any) -> str:
    if isinstance(locked, str):
        return f"`{locked}`, and `{of_commit}`"
    more, less = sorted(set(locked) - set(of_commit)), sorted(set(of_commit) - set(locked))
    told = [f"with {', '.join(more)}" if more else "", f"without {', '.join(less)}" if less else ""]
    return f"{' and '.join(filter(None, told))}, unlike"


def _inspect_values(
    key: str, stages: Mapping[str, Any], params: Mapping[str, Any], found: Inspection
) -> None:
    for stage, entry in stages.items():
        for name, locked in _tracked(entry).items():
            value: Any = params
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            detail = f"{stage} ran with {locked!r}, params.yaml has {value!r}"
            found.expect(VALUES, value == locked, Fault(key, "params.yaml", name, detail))


def _inspect_inputs(
    key: str, stages: Mapping[str, Any], commit: Path | None, found: Inspection
) -> None:
    """Code is the commit's; what another stage made is what that stage wrote."""
    made = {out["path"]: out for entry in stages.values() for out in entry.get("outs", [])}
    own = set()
    for stage, entry in stages.items():
        for dep in entry.get("deps", []):
            path, md5 = dep["path"], dep.get("md5")
            field = f"stages.{stage}.deps.{path}"
            if path in made:
                wrote = made[path].get("md5")
                detail = f"read {short(md5)}, the stage that makes it wrote {short(wrote)}"
                found.expect(PASSED, md5 == wrote, Fault(key, LOCK, field, detail))
            elif commit is None:
                continue
            elif (commit / path).exists() and not Path(path).is_absolute():
                at_commit = hash_path(commit / path)
                detail = f"is {short(md5)} in the lock, {short(at_commit)} at the commit"
                found.expect(CODE, md5 == at_commit, Fault(key, LOCK, path, detail))
            elif Path(path) != paths.HARDWARE:  # which tells of a machine
                own.add(path)
    note = "not in the commit, and so not checked: {}"
    found.notes.extend(n for n in map(note.format, sorted(own)) if n not in found.notes)


def _inspect_kept(key: str, stages: Mapping[str, Any], folder: Path, found: Inspection) -> None:
    for stage, entry in stages.items():
        for out in entry.get("outs", []):
            path = Path(out["path"])
            if any(path.is_relative_to(kept) for kept in KEPT):
                name = path.relative_to(paths.DATA)
                there = hash_path(folder / name)
                if there is None and path == paths.REPORT:  # its records give it
                    if WITHOUT_REPORT not in found.notes:
                        found.notes.append(WITHOUT_REPORT)
                    continue
                what = "is missing" if there is None else f"has the md5 {short(there)}"
                detail = f"{what}, the lock says that {stage} wrote {short(out.get('md5'))}"
                fault = Fault(key, name.as_posix(), "md5", detail)
                found.expect(FILES, there is not None and there == out.get("md5"), fault)


def _paths(entry: Mapping[str, Any], part: str) -> list[str]:
    return sorted({item["path"] for item in entry.get(part, [])})


def _tracked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    tracked: Mapping[str, Any] = entry.get("params", {}).get("params.yaml", {})
    return tracked
