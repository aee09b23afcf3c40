"""Sweeps: `python -m bitrank.sweep -m adapter.rank=2,8,32 precision=fp32,nf4 seed=0,1,2`.

Hydra reads the command line and brings the jobs to where they run (`hydra/launcher=...`); a job is
`dvc repro` in a workspace of its own. All points are composed and checked before the first one
starts, what several have in common is computed once, and what is done stays done: the same command
again runs only what is missing, and goes on where it was interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import hydra
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from bitrank import composition, environment, fitting, pipeline, tracking, workspace
from bitrank.errors import UserError
from bitrank.grid import Grid, Point, expand
from bitrank.manifest import SweepFolder
from bitrank.sweep_projection import FAILURES
from bitrank.watch import watching

ONE_AT_A_TIME = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
LOG = logging.getLogger(__name__)
Job = tuple[str, Sequence[str]]
"""A point's key and the stages to run; none: all."""


def main() -> None:
    """The command line. Exit status: 0 all points are done, 1 some are not, 130 interrupted."""
    if not (composition.CONF / "sweep.yaml").is_file():
        sys.exit("error: conf/sweep.yaml does not exist: run this in the project's root")
    conf = str(composition.CONF.resolve())
    try:
        hydra.main(version_base="1.3", config_path=conf, config_name="sweep")(run_job)()
    except KeyboardInterrupt:
        sys.exit(130)


def run_job(config: DictConfig) -> None:
    """One job, wherever the launcher runs it."""
    from bitrank import points

    job = config.sweep.job
    sweep, stages = SweepFolder(job.sweep), list(job.stages)
    points.run_point(sweep, job.key, stages)
    # A file of SQLite cannot be shared by the nodes of a cluster: there, the driver publishes.
    far = "SLURM_JOB_ID" in os.environ and "MLFLOW_TRACKING_URI" not in os.environ
    if not stages and not far:
        _BESIDE.run(
            lambda: _publish(lambda: tracking.publish_point(sweep.folder, job.key, job.experiment))
        )


def run_sweep(arguments: Sequence[str], config: DictConfig, launcher: Launcher) -> None:
    """Run what is missing of the sweep that the arguments describe, and tell how it ended."""
    try:
        grid = expand(arguments)
        sweep = _declare(grid, config.sweep.name)
        waiting = [p for p in grid.points if sweep.outcome(p.key).status != "done"]
        _announce(sweep, grid, len(waiting))
        if waiting:
            _check_memory(waiting, config)
            _run(sweep, waiting, config, launcher)
        _publish(lambda: tracking.publish_sweep(sweep.folder, config.tracking.experiment))
    except UserError as error:
        sys.exit(f"error: {error}")
    if not _tell_end(sweep, [p.key for p in grid.points]):
        sys.exit(1)


def _publish(publish: Callable[[], object]) -> None:
    """MLflow shows what the records say; whatever ails it, they are safe."""
    try:
        publish()
    except UserError as error:
        LOG.warning("warning: not published: %s; the same command again publishes", error)


class _Beside:
    """Work that is done while the next point runs, where points run in this process."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._begun: list[Future[None]] = []

    def run(self, work: Callable[[], None]) -> None:
        if self._pool is None:
            work()
        else:
            self._begun.append(self._pool.submit(work))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let work begin inside the block; at its end wait for it, and raise what it raised."""
        with ThreadPoolExecutor(max_workers=1) as self._pool:
            try:
                yield
            finally:
                self._pool = None
        while self._begun:
            self._begun.pop().result()


_BESIDE = _Beside()
"""In another process than the driver's it waits for nothing: points are published as they end."""


def _declare(grid: Grid, name: str | None) -> SweepFolder:
    code_hash = workspace.hash_code()
    sweep = SweepFolder(grid.name_sweep(name, code_hash))
    code = {"code_hash": code_hash, **environment.describe_commit()}
    sweep.declare(grid, sweep.sweep.rpartition("-")[0], code)
    return sweep


def _announce(sweep: SweepFolder, grid: Grid, num_waiting: int) -> None:
    num_points = len(grid.points)
    varied = "; ".join(f"{axis} {', '.join(values)}" for axis, values in grid.axes.items())
    print(f"sweep {sweep.sweep}: {num_points} points{f' ({varied})' if varied else ''}")
    print(f"{num_points - num_waiting} done before, {num_waiting} to run; kept in {sweep.folder}",
          flush=True)  # fmt: skip


def _check_memory(points: Sequence[Point], config: DictConfig) -> None:
    """Name the points that will not fit this machine; a cluster's nodes are not known here."""
    if "slurm" in config.hydra.launcher._target_.lower():
        return
    found = list(fitting.find_misfits(points))
    for misfit in found:
        kind = "does not fit" if misfit.certain else "warning"
        LOG.warning("%s: %s: %s", kind, misfit.key, misfit.reason)
    certain = [misfit.key for misfit in found if misfit.certain]
    if certain and config.sweep.oversized != "run":
        raise UserError(
            f"{len(certain)} of {len(points)} points cannot fit: leave them out, take a smaller "
            "model or precision, or add sweep.oversized=run to start them all the same"
        )


def _run(
    sweep: SweepFolder, points: Sequence[Point], config: DictConfig, launcher: Launcher
) -> None:
    with sweep.changing():
        workspace.copy_code(sweep.code)
    waves: list[Sequence[Job]] = []
    alone = config.hydra.launcher._target_ == ONE_AT_A_TIME
    if not alone:  # else no two points meet
        written = pipeline.load()
        waves += pipeline.plan_waves(
            {p.key: pipeline.find_stages(written, p.params) for p in points}
        )
    try:
        with (
            watching(sweep, [point.key for point in points]),
            _BESIDE.waiting() if alone else nullcontext(),
        ):
            for wave in waves:
                _prepare([_describe_job(sweep, config, *job) for job in wave], launcher)
            jobs = {point.key: _describe_job(sweep, config, point.key, []) for point in points}
            _launch_points(sweep, jobs, launcher)
    finally:
        sweep.refresh()


def _prepare(jobs: Sequence[str], launcher: Launcher) -> None:
    """Compute what points share. What fails here fails again, and is recorded, at each of them."""
    try:
        launcher.launch([[job] for job in jobs], initial_job_idx=0)
    except Exception as error:
        LOG.warning("warning: the launcher lost a job: %s", error)


def _launch_points(sweep: SweepFolder, jobs: Mapping[str, str], launcher: Launcher) -> None:
    """Launch points; where the launcher loses a worker, and the others with it, those again."""
    waiting = list(jobs)
    while waiting:
        try:
            ended: Sequence[JobReturn] = launcher.launch(
                [[jobs[key]] for key in waiting], initial_job_idx=0
            )
        except Exception as error:
            left = [k for k in waiting if sweep.outcome(k).status in ("missing", "interrupted")]
            if len(left) == len(waiting):  # not a worker: the launcher itself
                raise UserError(f"the launcher failed: {error}") from error
            waiting = left
        else:
            for job in ended:
                _ = job.return_value  # raises what a job did not expect
            return


def _describe_job(sweep: SweepFolder, config: DictConfig, key: str, stages: Sequence[str]) -> str:
    """A job as one override, in Hydra's grammar."""
    quoted = ",".join(f"'{stage}'" for stage in stages)
    experiment = config.tracking.experiment.replace("'", "\\'")
    return (
        f"sweep.job={{sweep:'{sweep.sweep}',key:'{key}',stages:[{quoted}],"
        f"experiment:'{experiment}'}}"
    )


def _tell_end(sweep: SweepFolder, keys: Sequence[str]) -> bool:
    """Print each point that is not done with its reason; return whether all are done."""
    outcomes = sweep.outcomes(keys)
    for key, outcome in outcomes.items():
        if outcome.status in FAILURES:
            print(f"{outcome.status}: {key}: {outcome.reason} (log: {sweep.log(key)})")
    num_done = sum(outcome.status == "done" for outcome in outcomes.values())
    print(f"{num_done} of {len(keys)} points are done: {sweep.manifest}")
    if num_done < len(keys):
        print("the same command again runs what is missing")
    return num_done == len(keys)


if __name__ == "__main__":
    from bitrank.sweep import main as run  # workers must find the job in a module of this name

    run()
