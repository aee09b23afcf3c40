"""The one door to MLflow: a run's projection, published once however often one publishes.

A run is found by the tag `bitrank.key`. It counts as published when it is finished and carries
the hash of what it shows; anything else with that key is the rest of a publication that was cut
short, or shows what the records no longer say, and gives way to a new run. JSON is the truth:
a store that cannot be reached never costs a result, the records can be published at any later
time.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from bitrank import paths
from bitrank.board import VIEW_TAG, describe_view
from bitrank.errors import UserError
from bitrank.projection import Projection, project_run
from bitrank.store import CONTENT, KEY, Store, find_published, find_store, hide_secrets

STAGE_PATIENCE = 8.0
"""Seconds after which the `record` stage gives a slow server up."""
MAX_BATCH = {"metrics": 1000, "params": 100}
"""What MLflow takes in one call."""
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
HURRIED = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
T = TypeVar("T")
log = logging.getLogger(__name__)


class TrackingError(UserError):
    """The store refused, or did not answer; the records are untouched."""


@dataclass(frozen=True, kw_only=True)
class Published:
    run_id: str
    name: str
    store: str
    outcome: Literal["published", "unchanged"]


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
    projection = project_run(results, params, lock, report)
    store = find_store()
    outcome: Literal["published", "unchanged"] = "unchanged"
    run_id = find_published(store, experiment, projection)
    if run_id is None:
        with _faults_of(store):
            client = _open_client(store, hurry=patience is not None)
            check = _start_clock(store, patience)
            run_id, outcome = _bring(client, store, experiment, projection, check)
    return Published(run_id=run_id, name=projection.name, store=store.shown, outcome=outcome)


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


def _start_clock(store: Store, patience: float | None) -> Callable[[], None]:
    """A check, made before each request, that a server's time is not up."""
    started = time.monotonic()

    def check() -> None:
        if store.folder is None and patience is not None and time.monotonic() - started > patience:
            raise TrackingError(f"{store.shown} is too slow: not done after {patience:.0f} s")

    return check


@contextmanager
def _faults_of(store: Store) -> Iterator[None]:
    """MLflow lets the errors of requests, SQLAlchemy, alembic and drivers through: all are its."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        reason = hide_secrets(str(error)).strip().splitlines() or [type(error).__name__]
        if "Max retries exceeded" in reason[0] or "timeout" in reason[0]:
            raise TrackingError(f"{store.shown} does not answer") from None
        raise TrackingError(f"{store.shown}: {reason[0]}") from None


def _open_client(store: Store, hurry: bool) -> Any:
    for name, value in (ENVIRONMENT | (HURRIED if hurry else PATIENT)).items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would tell of each attempt
    from mlflow import MlflowClient  # 2 seconds

    if store.folder is not None:
        store.folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=store.uri)


def _bring(
    client: Any,
    store: Store,
    experiment: str,
    projection: Projection,
    check: Callable[[], None],
) -> tuple[str, Literal["published", "unchanged"]]:
    check()
    experiment_id = _find_experiment(client, store, experiment)
    check()
    with_key = client.search_runs([experiment_id], f"tags.`{KEY}` = '{projection.key}'")
    whole = [
        run.info.run_id
        for run in with_key
        if (run.info.status, run.data.tags.get(CONTENT)) == ("FINISHED", projection.content)
    ]
    kept = whole[0] if whole else _write_run(client, experiment_id, projection, check)
    for run in with_key:
        if run.info.run_id != kept:
            check()
            client.delete_run(run.info.run_id)
    return kept, "unchanged" if whole else "published"


def _find_experiment(client: Any, store: Store, name: str) -> str:
    view = describe_view()
    found = client.get_experiment_by_name(name)
    if found is None:
        location = store.artifacts
        return str(
            client.create_experiment(name, artifact_location=location, tags={VIEW_TAG: view})
        )
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} was deleted in {store.shown}: restore it there, or choose "
            "another name with `bitrank params tracking.experiment=...`"
        )
    if store.artifacts not in (None, found.artifact_location):
        raise TrackingError(
            f"{store.shown} was made in another folder and its files are still there: move the "
            f"project back, or delete {paths.MLFLOW} (the records rebuild it)"
        )
    if found.tags.get(VIEW_TAG) != view:
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, view)
    return str(found.experiment_id)


def _write_run(
    client: Any, experiment_id: str, projection: Projection, check: Callable[[], None]
) -> str:
    """The hash of the content is written last: a run that has it is whole.

    The tags are named one by one, so MLflow adds neither the user nor the script's path.
    """
    from mlflow.entities import Metric, Param

    tags = {**projection.tags, KEY: projection.key}
    run = client.create_run(experiment_id, tags=tags, run_name=projection.name)
    run_id, now = str(run.info.run_id), run.info.start_time
    metrics = [Metric(name, value, now, 0) for name, value in projection.metrics.items()]
    for name, points in projection.curves.items():
        metrics += [Metric(name, value, now, step) for step, value in points]
    params = [Param(name, value) for name, value in projection.params.items()]
    for part in _batches(params, MAX_BATCH["params"]):
        check()
        client.log_batch(run_id, params=part)
    for part in _batches(metrics, MAX_BATCH["metrics"]):
        check()
        client.log_batch(run_id, metrics=part)
    with tempfile.TemporaryDirectory() as folder:
        for name, body in projection.artifacts.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
        check()
        client.log_artifacts(run_id, folder)
    check()
    client.set_tag(run_id, CONTENT, projection.content)
    client.set_terminated(run_id)
    return run_id


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
