"""The one door to MLflow: brings a store to hold each run exactly once, as it should stand.

A run is found by the tag `bitrank.key`. It stands as it should when it carries the hash of what it
shows and has its last status, which is written at the end. One that was cut short is completed,
one that shows what the records no longer say gives way.

Several processes may publish at once. On the project's own store they take turns. On a server each
makes a run where it finds none, looks again, and all agree on the oldest: there they write the same
values, and what others made beside it is deleted.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from bitrank import devices, paths
from bitrank.board import ALL_RUNS, VIEW_TAG, describe_view
from bitrank.errors import UserError
from bitrank.store import (
    CONTENT,
    KEY,
    PARENT,
    Store,
    Wanted,
    describe_held,
    find_whole,
    hide_secrets,
)

MAX_BATCH = {"metrics": 1000, "params": 100}
"""What MLflow takes in one call."""
ATTEMPTS = 5
"""How often others may interfere on a server."""
CONFLICT = re.compile("unique|duplicate|integrity|deadlock|is locked", re.IGNORECASE)
"""What databases say to the second of two who write the same at once."""
Outcome = Literal["published", "unchanged"]
PUBLISHED: Outcome = "published"
UNCHANGED: Outcome = "unchanged"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
HURRIED = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class TrackingError(UserError):
    """The store refused, or did not answer; the records are untouched."""


def _start_clock(store: Store, patience: float | None) -> Callable[[], None]:
    """A check, made before each request, that a server's time is not up."""
    started = time.monotonic()

    def check() -> None:
        if store.folder is None and patience is not None and time.monotonic() - started > patience:
            raise TrackingError(f"{store.shown} is too slow: not done after {patience:.0f} s")

    return check


@contextmanager
def open_store(store: Store, experiment: str, patience: float | None = None) -> Iterator[Writer]:
    """Start MLflow, and on the project's own store wait for whoever else publishes there.

    Raises:
        TrackingError: the store cannot be reached, or refuses, now or inside the block.
    """
    with _faults_of(store), _taking_turns(store):
        client = _open_client(store, hurry=patience is not None)
        check = _start_clock(store, patience)
        check()
        experiment_id = _find_experiment(client, store, experiment)
        yield Writer(client, experiment_id, check)


@contextmanager
def _faults_of(store: Store) -> Iterator[None]:
    """MLflow lets the errors of requests, SQLAlchemy, alembic and drivers through: all are its."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = hide_secrets(str(error)).strip().splitlines() or [type(error).__name__]
        if "Max retries exceeded" in reason[0] or "timeout" in reason[0]:
            raise TrackingError(f"{store.shown} does not answer") from None
        raise TrackingError(f"{store.shown}: {reason[0]}") from None


@contextmanager
def _taking_turns(store: Store) -> Iterator[None]:
    """Two that create MLflow's tables at once would both fail; a server does that for itself."""
    if store.folder is None:
        yield
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    with devices.holding(store.folder / "publishing.lock", f"others publish to {store.shown}"):
        yield


def _open_client(store: Store, hurry: bool) -> Any:
    for name, value in (ENVIRONMENT | (HURRIED if hurry else PATIENT)).items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would tell of each attempt
    from mlflow import MlflowClient  # 2 seconds

    if store.database is not None and not store.database.exists():
        # MLflow takes a second to make its tables and cannot go on with half of them: all or none.
        draft = store.database.with_suffix(".draft")
        for left in draft.parent.glob(f"{draft.name}*"):
            left.unlink()
        MlflowClient(tracking_uri=f"sqlite:///{draft.as_posix()}").search_experiments(max_results=1)
        draft.replace(store.database)
    return MlflowClient(tracking_uri=store.uri)


def _find_experiment(client: Any, store: Store, name: str) -> str:
    tag, view = VIEW_TAG + ALL_RUNS, describe_view()
    found = client.get_experiment_by_name(name)
    if found is None:
        location = store.artifacts
        try:
            return str(client.create_experiment(name, artifact_location=location, tags={tag: view}))
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise  # else somebody was quicker
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
    if found.tags.get(tag) != view:
        _set_view(client, found.experiment_id, ALL_RUNS, view)
    return str(found.experiment_id)


def _set_view(client: Any, experiment_id: str, name: str, view: str) -> None:
    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG + name, view)
    except Exception as error:
        if not CONFLICT.search(str(error)):
            raise


class Writer:
    """Runs of one experiment, as MLflow has them. Every method may be called by many at once."""

    def __init__(self, client: Any, experiment_id: str, check: Callable[[], None]) -> None:
        self.client = client
        self._experiment_id = experiment_id
        self._check = check

    def find(self, tag: str, value: str) -> list[Any]:
        """The active runs with this tag, in an order that is the same for everybody."""
        runs: list[Any] = []
        token: str | None = ""
        while token is not None:
            self._check()
            sought = f"tags.`{tag}` = '{value}'"
            page = self.client.search_runs([self._experiment_id], sought, page_token=token or None)
            runs += page
            token = page.token or None
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def claim(self, wanted: Wanted, parent: str | None = None) -> Any:
        """The oldest run that is, or is to become, what is wanted; made where there is none."""
        for _ in range(ATTEMPTS):
            runs = _candidates(self.find(KEY, wanted.key), wanted)
            if runs:
                return runs[0]
            shown = wanted.project()
            seconds = shown.seconds or 0.0
            tags = {
                **shown.tags,
                KEY: wanted.key,
                CONTENT: "" if wanted.lasting else wanted.content,
            }
            if parent is not None:
                tags[PARENT] = parent
            self._check()
            # The tags are named one by one, so MLflow adds neither the user nor the script's path.
            self.client.create_run(
                self._experiment_id,
                start_time=int((time.time() - seconds) * 1000),
                tags=tags,
                run_name=shown.name,
            )
        raise TrackingError(f"others remove {wanted.key} as often as it is published")

    def bring(self, wanted: Wanted, parent: str | None = None) -> tuple[str, Outcome]:
        """Bring the store to hold exactly one run with this key, and that one as it should be."""
        outcome = UNCHANGED
        for _ in range(ATTEMPTS):
            run = self.claim(wanted, parent)
            with self._beside_others(run.info.run_id):
                if not find_whole([wanted], [describe_held(run)]):
                    self._write(run, wanted)
                    outcome = PUBLISHED
                if self._clear(run, wanted):
                    return str(run.info.run_id), outcome
        raise TrackingError(f"others publish another {wanted.key} at the same time")

    def _clear(self, kept: Any, wanted: Wanted) -> bool:
        """Delete what else has the key; false where it is not for this run to stay."""
        runs = self.find(KEY, wanted.key)
        if kept.info.run_id not in [r.info.run_id for r in _candidates(runs, wanted)[:1]]:
            return False
        others = [run for run in runs if run.info.run_id != kept.info.run_id]
        for run in others:
            self.delete(run)
        return not others or self._is_active(kept.info.run_id)

    def show(self, name: str, view: str) -> None:
        """Put a view beside that of all runs."""
        self._check()
        _set_view(self.client, self._experiment_id, name, view)

    def delete(self, run: Any) -> None:
        self._check()
        with self._beside_others(run.info.run_id):
            self.client.delete_run(run.info.run_id)

    def put_under(self, run: Any, parent: str) -> None:
        if run.data.tags.get(PARENT) != parent:
            self._check()
            with self._beside_others(run.info.run_id):
                self.client.set_tag(run.info.run_id, PARENT, parent)

    @contextmanager
    def _beside_others(self, run_id: str) -> Iterator[None]:
        """What fails because somebody wrote the same, or deleted the run, meanwhile does not."""
        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            if not CONFLICT.search(str(error)) and self._is_active(run_id):
                raise

    def _is_active(self, run_id: str) -> bool:
        return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")

    def _write(self, run: Any, wanted: Wanted) -> None:
        """Twice the same is once; what makes the run whole is written last."""
        from mlflow.entities import Metric, Param, RunTag

        shown, run_id, now = wanted.project(), run.info.run_id, run.info.start_time
        if wanted.lasting:
            now = int(time.time() * 1000)
            tags = [RunTag(name, value) for name, value in {**shown.tags, CONTENT: ""}.items()]
            self._check()
            self.client.log_batch(run_id, tags=tags)
        metrics = [Metric(name, value, now, 0) for name, value in shown.metrics.items()]
        for name, points in shown.curves.items():
            metrics += [Metric(name, value, now, step) for step, value in points]
        params = [Param(name, value) for name, value in shown.params.items()]
        for name, values in (("params", params), ("metrics", metrics)):
            for start in range(0, len(values), MAX_BATCH[name]):
                self._check()
                part = {name: values[start : start + MAX_BATCH[name]]}
                self.client.log_batch(run_id, **part)
        self._write_artifacts(run_id, shown.artifacts)
        self._check()
        if wanted.status == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        else:
            ended = None if shown.seconds is None else int(now + shown.seconds * 1000)
            self.client.set_terminated(run_id, wanted.status, ended)
        if wanted.lasting:
            self.client.set_tag(run_id, CONTENT, wanted.content)

    def _write_artifacts(self, run_id: str, artifacts: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, body in artifacts.items():
                file = Path(folder) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(body)
            self._check()
            self.client.log_artifacts(run_id, folder)


def _candidates(runs: Sequence[Any], wanted: Wanted) -> list[Any]:
    return [run for run in runs if wanted.lasting or run.data.tags.get(CONTENT) == wanted.content]
