"""Run one point of a sweep in a workspace of its own, and keep how it ended.

Whatever happens to the pipeline (an error, a kill, no memory) is an outcome, not an exception: the
other points go on.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitrank import devices, identity, paths, pipeline
from bitrank.artifacts import whole_folder
from bitrank.environment import COMMIT
from bitrank.manifest import Outcome, Status, SweepFolder
from bitrank.privacy import hide_home
from bitrank.projection import parse_yaml
from bitrank.workspace import CODE, SHARED, Workspace

KEPT = (paths.RESULTS, paths.DATA / "items", paths.REPORT)
KILLED = (-9, 137)
"""Exit statuses of a process that was killed, and of a shell whose child was."""
RAN = re.compile(r"Running stage '(?:\S+:)?([\w@-]+)'")
RESTORED = re.compile(r"Stage '(?:\S+:)?([\w@-]+)' is cached")
ENDED = re.compile(
    r"^ERROR: failed to reproduce '(?:\S+:)?(?P<stage>[\w@-]+)'"
    r"(?:.*exited with (?P<status>-?\d+))?",
    re.M,
)


def run_point(
    sweep: SweepFolder, key: str, targets: Sequence[str], shared: Sequence[Path] = SHARED
) -> Outcome:
    """Bring a point to its end, or the named stages only; `targets` empty: all.

    `shared`: folders of the project in the current directory that its workspace has too.

    Raises:
        KeyboardInterrupt: when it was interrupted; the outcome says so.
    """
    keep = not targets
    with sweep.holding(key):
        before = sweep.outcome(key)
        if before.status == "done":  # by another process that had the same command
            return before
        if keep:
            sweep.write_outcome(key, Outcome(status="running"))
        start = time.monotonic()
        try:
            outcome = _run(sweep, key, targets or [pipeline.END], keep, shared)
        except (KeyboardInterrupt, SystemExit):  # the latter from a cluster that wants its node
            if keep:
                sweep.write_outcome(key, Outcome(status="interrupted"))
            raise
        except OSError as error:  # no room for a workspace, say
            outcome = Outcome(status="failed", reason=hide_home(str(error)))
        outcome = replace(outcome, seconds=time.monotonic() - start)
        if keep:
            sweep.write_outcome(key, outcome)
        return outcome


def _run(
    sweep: SweepFolder, key: str, targets: Sequence[str], keep: bool, shared: Sequence[Path]
) -> Outcome:
    text = sweep.params(key).read_text(encoding="utf-8")
    params = parse_yaml(text)
    stages = pipeline.find_stages(pipeline.load(sweep.code / "dvc.yaml"), params)
    workspace = Workspace(sweep.workspace(key))
    inputs = pipeline.own_inputs(stages, CODE)
    workspace.make(sweep.code, text, inputs, sweep.find_lock(text), shared)
    log = sweep.log(key)
    log.write_text("", encoding="utf-8")
    kills = _count_memory_kills()
    with devices.leased(params["runtime"]["device"]) as environment:
        told = {**environment, COMMIT: json.dumps(sweep.commit())}
        status = workspace.reproduce(targets, log, told)
    printed = log.read_text(encoding="utf-8", errors="replace")
    if keep:
        _keep(workspace.folder, sweep.kept(key))
    workspace.remove()
    if status:
        return _explain(printed, memory_ran_out=_count_memory_kills() > kills)
    lock = sweep.kept(key) / "dvc.lock"
    return Outcome(
        status="done",
        stages_ran=RAN.findall(printed),
        stages_restored=RESTORED.findall(printed),
        lock_sha256=identity.hash_file(lock) if keep else None,
    )


def _keep(workspace: Path, kept: Path) -> None:
    """Copy lock, records, item logs and report: plain files that live without DVC's cache."""
    for source in KEPT:
        if (workspace / source).is_dir():
            with whole_folder(kept / source.name) as folder:
                shutil.copytree(workspace / source, folder, dirs_exist_ok=True,
                                copy_function=shutil.copyfile)  # fmt: skip
    if (workspace / "dvc.lock").is_file():
        shutil.copyfile(workspace / "dvc.lock", kept / "dvc.lock")


def _explain(printed: str, memory_ran_out: bool) -> Outcome:
    """Why the pipeline ended: what its last stage said, or how it was killed."""
    ended = ENDED.search(printed)
    before = printed[: ended.start()] if ended else printed
    lines = [line.strip() for line in before.splitlines() if line.strip()]
    told = [line.partition(": ")[2] for line in lines if line.lower().startswith("error: ")]
    reason = (told or lines or ["it printed nothing"])[-1]
    if ended and int(ended["status"] or 0) in KILLED:
        reason = "killed (signal 9); the system does that when memory runs out"
        if memory_ran_out:
            reason = "killed by the system: out of memory"
    where = f"stage {ended['stage']}: " if ended else ""
    status: Status = "out of memory" if "out of memory" in reason else "failed"
    return Outcome(status=status, reason=hide_home(where + reason))


def _count_memory_kills() -> int:
    """How often the system has killed for want of memory, as far as it tells."""
    counts: Mapping[str, Any] = {}
    for file in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        if file.is_file():
            counts = dict(line.split() for line in file.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0
