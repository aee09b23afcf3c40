"""`bitrank verify <sweep>`: is what is kept of a sweep what the commit that it names would leave?

Everything is read from files and git; nothing is computed that needs torch. What is checked:
the commit and its code; each point's configuration, lock and files; and its records against each
other and against the item logs. What this cannot show is that the numbers were computed at all:
`rerun` shows that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitrank import composition, history, identity, workspace
from bitrank.errors import UserError
from bitrank.inspection import Fault, Inspection, short
from bitrank.locks import inspect_lock
from bitrank.manifest import Outcome
from bitrank.recount import inspect_records
from bitrank.sweep_projection import MANIFEST, Point, Sweep, read_sweep

COMMIT, POINTS = "commit and code", "points in the manifest"
PARAMS, COMPOSED = "params.yaml", "params.yaml composed anew"
PARTS = ("dvc.lock", "items", "outcome.json", "params.yaml", "report", "results")
"""What is kept of a point."""


def verify(folder: Path) -> Inspection:
    """Check `data/sweeps/<sweep>`, or a copy of it, against the history in the current directory.

    Raises:
        UserError: no such sweep, a manifest that cannot be read, or no point that is done.
    """
    sweep = read_sweep(folder)
    done = [point for point in sweep.points if point.status == "done"]
    if not done:
        raise UserError(f"{folder} has no point that is done: there is nothing to verify")
    found = Inspection()
    left = [f"{p.key} ({p.status})" for p in sweep.points if p.status != "done"]
    if left:
        found.notes.append(f"not done, and so not checked: {', '.join(left)}")
    manifest = sweep.manifest
    if manifest.get("git_dirty"):
        detail = "the sweep ran with changes that were not committed: no commit has its code"
        found.expect(COMMIT, False, Fault("", MANIFEST, "git_dirty", detail))
    _inspect_points(sweep, folder, found)
    try:
        with history.checked_out(manifest.get("git_commit")) as commit:
            _inspect_code(manifest, commit, found)
            _inspect_composition(sweep, done, commit, found)
            _inspect_locks(done, commit, found)
    except UserError as error:
        found.expect(COMMIT, False, Fault("", MANIFEST, "git_commit", str(error)))
        found.notes.append("without the commit, code, commands and configurations are not checked")
        _inspect_locks(done, None, found)
    for point in done:
        inspect_records(point.key, point.folder, found)
    return found


def _inspect_locks(done: list[Point], commit: Path | None, found: Inspection) -> None:
    for point in done:
        inspect_lock(point.key, point.folder, point.entry.get("lock_sha256"), commit, found)


def _inspect_code(manifest: Mapping[str, Any], commit: Path, found: Inspection) -> None:
    named, there = manifest.get("code_hash"), workspace.hash_code(commit)
    detail = (
        f"the sweep ran {short(named)}, {short(manifest['git_commit'])} has {short(there)}: with "
        "changes, or beside files in src/ or stages/ that git did not know"
    )
    found.expect(COMMIT, named == there, Fault("", MANIFEST, "code_hash", detail))


def _inspect_points(sweep: Sweep, folder: Path, found: Inspection) -> None:
    known = {point.key for point in sweep.points}
    strange = {file.parent.name for file in folder.glob("*/params.yaml")} - known
    for name in sorted(strange):
        found.expect(POINTS, False, Fault(name, MANIFEST, "points", "is a folder without an entry"))
    for point in sweep.points:
        if point.status == "done":
            _inspect_point(point, found)


def _inspect_point(point: Point, found: Inspection) -> None:
    file = point.folder / "outcome.json"
    try:
        outcome = json.loads(file.read_text(encoding="utf-8"))
        told = {name: point.entry.get(name) for name in Outcome.__dataclass_fields__}
        differing = [name for name, value in told.items() if outcome.get(name) != value]
        faults = [Fault(point.key, "outcome.json", n,
                        f"is {outcome.get(n)!r}, sweep.json has {told[n]!r}")
                  for n in differing]  # fmt: skip
    except (OSError, ValueError, AttributeError):
        faults = [Fault(point.key, "outcome.json", "", "is missing or cannot be read")]
    for name in sorted(p.name for p in point.folder.iterdir() if p.name not in PARTS):
        faults.append(Fault(point.key, name, "", "is nothing that a sweep keeps"))
    found.counts[POINTS] += 1
    found.faults[POINTS].extend(faults)
    params = point.folder / "params.yaml"
    there = identity.hash_file(params) if params.is_file() else None
    named = point.entry.get("params_sha256")
    detail = f"is {short(there)}, sweep.json names {short(named)}"
    found.expect(PARAMS, there == named, Fault(point.key, "params.yaml", "sha256", detail))


def _inspect_composition(sweep: Sweep, done: list[Point], commit: Path, found: Inspection) -> None:
    """The overrides give each point's configuration at the commit."""
    conf = commit / composition.CONF
    if any(composition.RESOLVER.search(f.read_text("utf-8")) for f in conf.rglob("*.yaml")):
        found.notes.append("conf/ asks resolvers, such as variables of the environment: what it "
                           "composed on that day cannot be told")  # fmt: skip
        return
    with composition.composing(conf):
        for point in done:
            overrides = [*sweep.manifest.get("overrides", []), *point.entry["overrides"]]
            params = point.folder / "params.yaml"
            kept = params.read_text(encoding="utf-8") if params.is_file() else ""
            try:
                text = composition.compose_unchecked(overrides)
                detail = _first_difference(kept, text)
            except UserError as error:
                text, detail = "", str(error)
            fault = Fault(point.key, "params.yaml", " ".join(overrides) or "the defaults", detail)
            found.expect(COMPOSED, text == kept, fault)


def _first_difference(kept: str, composed: str) -> str:
    pairs = zip([*kept.splitlines(), ""], [*composed.splitlines(), ""], strict=False)
    for number, (one, other) in enumerate(pairs, 1):
        if one != other:
            return f"line {number} is `{one.strip()}`, the commit composes `{other.strip()}`"
    return "is of another length than what the commit composes"
