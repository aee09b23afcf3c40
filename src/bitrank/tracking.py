"""Publishing to MLflow: a run or a whole sweep, once however often one publishes.

JSON is the truth: a store that cannot be reached never costs a result, the records can be published
at any later time. That there is nothing to publish is found out without MLflow, which takes seconds
to start, if the store is the project's own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitrank import paths
from bitrank.board import describe_sweep_view
from bitrank.errors import UserError
from bitrank.projection import project_run
from bitrank.store import (
    KEY,
    POINT,
    SWEEP,
    Held,
    Wanted,
    describe_held,
    find_held,
    find_store,
    find_whole,
)
from bitrank.sweep_projection import ENDED, read_sweep, want_parent, want_point, want_points
from bitrank.writer import (
    PUBLISHED,
    UNCHANGED,
    Outcome,
    TrackingError,
    Writer,
    open_store,
)

STAGE_PATIENCE = 8.0
"""Seconds after which the `record` stage gives a slow server up."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published:
    run_id: str
    name: str
    store: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class PublishedSweep:
    """`num_published` of `num_points` ended points were not yet in the store."""

    name: str
    store: str
    outcome: Outcome
    num_points: int
    num_published: int


def publish(
    results: Path = paths.RESULTS,
    *,
    experiment: str,
    params: Path = Path("params.yaml"),
    lock: Path = Path("dvc.lock"),
    report: Path = paths.REPORT,
    patience: float | None = None,
) -> Published:
    """Bring the store to hold exactly one finished run for these records.

    `patience`: seconds after which a slow server is given up (MLflow's start does not count);
    null: as long as it answers.

    Raises:
        TrackingError: the store cannot be reached, or refuses.
        UserError: the records are missing, or are not those of this `params.yaml`.
    """
    shown = project_run(results, params, lock, report)
    wanted = Wanted(key=shown.key, content=shown.content, project=lambda: shown)
    store = find_store()
    there = find_whole([wanted], find_held(store, experiment, KEY, wanted.key)).get(wanted.key)
    if there is not None:
        run_id, outcome = there.run_id, UNCHANGED
    else:
        with open_store(store, experiment, patience) as writer:
            run_id, outcome = writer.bring(wanted)
    return Published(run_id=run_id, name=shown.name, store=store.shown, outcome=outcome)


def publish_or_warn(results: Path = paths.RESULTS, *, experiment: str) -> Published | None:
    """For the pipeline: whatever ails the store is a warning with the command for later.

    Raises:
        UserError: the records are missing, or are not those of this `params.yaml`.
    """
    try:
        done = publish(results, experiment=experiment, patience=STAGE_PATIENCE)
    except TrackingError as error:
        log.warning("warning: not published: %s", error)
        log.warning("the results are safe in %s; later: bitrank publish", results)
        return None
    look = "" if find_store().folder is None else "; to look: make ui"
    log.info("%s: %s in %s%s", done.outcome, done.name, done.store, look)
    return done


def publish_sweep(folder: Path, experiment: str, patience: float | None = None) -> PublishedSweep:
    """Bring the store to hold the sweep's parent and a run for each point that ended, no others.

    Args:
        folder: `data/sweeps/<sweep>`.
        experiment: MLflow's name for where the runs go.
        patience: seconds after which a slow server is given up; null: as long as it answers.

    Raises:
        TrackingError: the store cannot be reached, or refuses.
        UserError: no manifest; or points whose files cannot be read, when all others are published.
    """
    sweep, store = read_sweep(folder), find_store()
    parent, points = want_parent(sweep), want_points(sweep)
    held = find_held(store, experiment, SWEEP, sweep.id)
    whole = len(held) == 1 + len(points) and bool(find_whole([parent], held))
    published: list[str] = []
    if not whole or not _stand(held, parent, points):
        with open_store(store, experiment, patience) as writer:
            published = _bring_sweep(writer, folder)
    return PublishedSweep(
        name=sweep.id,
        store=store.shown,
        outcome=PUBLISHED if published else UNCHANGED,
        num_points=len(points),
        num_published=len({*published} - {parent.key}),
    )


def publish_point(
    folder: Path, key: str, experiment: str, patience: float | None = None
) -> Outcome:
    """Bring the store to hold this point's run, below the sweep's parent.

    The parent is made if it is missing; its counts and table are `publish_sweep`'s.

    Raises:
        TrackingError: the store cannot be reached, or refuses.
        UserError: the sweep has no such point, it did not end, or its files cannot be read.
    """
    sweep, store = read_sweep(folder), find_store()
    point = sweep.find(key)
    if point.status not in ENDED:
        raise UserError(f"{key} of {sweep.id} is {point.status}: it is published when it has ended")
    parent, wanted = want_parent(sweep), want_point(sweep, point)
    held = find_held(store, experiment, SWEEP, sweep.id)
    if _stand(held, parent, [wanted]):
        return UNCHANGED
    with open_store(store, experiment, patience) as writer:
        outcome = writer.bring(wanted, writer.claim(parent).info.run_id)[1]
        for run in writer.find(KEY, wanted.key):
            # Another process may have made an older parent meanwhile.
            writer.put_under(run, writer.claim(parent).info.run_id)
    return outcome


def _stand(held: Sequence[Held], parent: Wanted, points: Sequence[Wanted]) -> bool:
    """Whether all these points stand as they should, below the one run of the sweep itself."""
    parents = [run.run_id for run in held if run.key == parent.key]
    below = [run.parent for run in find_whole(points, held).values()]
    return len(parents) == 1 and below == parents * len(points)


def _bring_sweep(writer: Writer, folder: Path) -> list[str]:
    """The keys of what was published; the parent counts the points when they are there."""
    sweep = read_sweep(folder)  # as it stands now that it is our turn
    parent, points = want_parent(sweep), want_points(sweep)
    above = writer.claim(parent).info.run_id
    whole = find_whole(points, [describe_held(run) for run in writer.find(SWEEP, sweep.id)])
    published, faults = [], []
    for wanted in [*(point for point in points if point.key not in whole), parent]:
        try:
            run_id, outcome = writer.bring(wanted, None if wanted is parent else above)
            above = run_id if wanted is parent else above
            published += [wanted.key] if outcome == PUBLISHED else []
        except TrackingError:
            raise
        except UserError as error:
            faults.append(str(error))
    writer.show(sweep.id, describe_sweep_view(sweep))
    _tidy(writer, folder, sweep.id, above)
    if faults:
        raise UserError("; ".join(dict.fromkeys(faults)))
    return published


def _tidy(writer: Writer, folder: Path, sweep: str, parent: str) -> None:
    """Put the runs of all ended points under the parent; delete those that are to have none."""
    runs = [run for run in writer.find(SWEEP, sweep) if POINT in run.data.tags]
    # Read after the runs: a point has ended before anybody makes a run of it.
    ended = {wanted.key for wanted in want_points(read_sweep(folder))}
    for run in runs:
        if run.data.tags.get(KEY) in ended:
            writer.put_under(run, parent)
        else:
            writer.delete(run)
