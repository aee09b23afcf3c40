"""`bitrank verify <sweep> --rerun`: points computed once more from nothing, at the sweep's commit.

The code is the commit's, the cache is empty, no checkpoint is at hand: nothing that was computed
before can be restored. Only downloads are shared, which are pinned by their sha256. What several of
these points have in common is computed once. All of it lies in one folder below `.dvc/tmp`, which
is removed when it ends or is interrupted; the sweep is only read, the project's cache not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bitrank import comparison, devices, history, paths, pipeline, points, records, workspace
from bitrank.comparison import Comparison
from bitrank.errors import UserError
from bitrank.manifest import SweepFolder
from bitrank.projection import read_yaml
from bitrank.sweep_projection import MANIFEST, read_sweep
from bitrank.workspace import CODE, Workspace

SCRATCH = Path(".dvc/tmp/verify")
SHARED = (paths.DOWNLOADS,)


def choose(folder: Path, keys: Sequence[str]) -> list[str]:
    """The points to re-run: those named, or all that are done.

    Raises:
        UserError: a key that the sweep does not have, or of a point that is not done.
    """
    statuses = {point.key: point.status for point in read_sweep(folder).points}
    done = [key for key, status in statuses.items() if status == "done"]
    for key in keys:
        if key not in done:
            why = statuses.get(key, "not a point of this sweep")
            raise UserError(f"{key} is {why}; of the points these are done: {', '.join(done)}")
    return list(dict.fromkeys(keys)) or done


def rerun_and_tell(folder: Path, keys: Sequence[str]) -> Iterator[str]:
    """Run these points, or all, again; yield what came out in lines, each when it is known.

    Raises:
        UserError: as `choose` and `rerun`, and at the end where not all came out as they were.
    """
    chosen = choose(folder, keys)
    yield f"running {len(chosen)} of its points again, from nothing"
    num_bad = 0
    for compared in rerun(folder, chosen):
        num_bad += not compared.is_good
        yield from compared.tell()
    if num_bad:
        raise UserError(f"{num_bad} of {len(chosen)} points did not come out as they were kept")


def rerun(folder: Path, keys: Sequence[str]) -> Iterator[Comparison]:
    """Run each of these points of `data/sweeps/<sweep>` again, and compare.

    Raises:
        UserError: the commit is not here, or has not the parts of a project.
        KeyboardInterrupt: when interrupted; nothing is left.
    """
    sweep = read_sweep(folder)
    with (
        history.checked_out(sweep.manifest.get("git_commit")) as commit,
        _scratch(sweep.id) as scratch,
    ):
        again = SweepFolder(sweep.id, scratch.resolve())
        workspace.copy_code(again.code, commit, scratch.resolve() / "cache")
        records.write_text(again.manifest, (folder / MANIFEST).read_text(encoding="utf-8"))
        for key in keys:
            yield _rerun_point(folder / key, again, key, commit)


def _rerun_point(kept: Path, again: SweepFolder, key: str, commit: Path) -> Comparison:
    _bring_inputs(kept, again.code, commit)
    again.kept(key).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept / "params.yaml", again.params(key))
    outcome = points.run_point(again, key, [], SHARED)
    if outcome.status != "done":
        return comparison.failed(key, outcome.reason)
    return comparison.compare_or_fail(key, kept, again.kept(key))


def _bring_inputs(kept: Path, code: Path, commit: Path) -> None:
    """Rows and weights of the user's own: the commit's where it has them, else as they are now."""
    params = read_yaml(kept / "params.yaml")
    stages = pipeline.find_stages(pipeline.load(commit / "dvc.yaml"), params)
    for path in pipeline.own_inputs(stages, CODE):
        source, target = commit / path, code / path
        if path.is_absolute() or target.exists() or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


@contextmanager
def _scratch(sweep: str) -> Iterator[Path]:
    """An empty folder of this process alone, removed at the end; what a killed one left goes first.

    On the project's disk: where the system keeps temporary files there may be no room for weights.
    """
    SCRATCH.mkdir(parents=True, exist_ok=True)
    folder = SCRATCH / sweep
    with devices.holding(SCRATCH / f"{sweep}.lock", f"another process re-runs {sweep}"):
        _clear(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            _clear(folder)


def _clear(folder: Path) -> None:
    for place in (folder / paths.WORKSPACES).glob("*/*/"):
        Workspace(place).end_processes()  # they would write into what goes
    shutil.rmtree(folder, ignore_errors=True)
