"""Where MLflow keeps the runs, told without MLflow, which takes seconds to start.

The store is MLFLOW_TRACKING_URI if that is set, else a SQLite file of this project. Only the
project's own store is ever read here, and only to learn that there is nothing to do: anything
unexpected in it means "not known", and MLflow then has a look itself.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitrank import paths
from bitrank.privacy import hide_home
from bitrank.projection import Projection

KEY, CONTENT = "bitrank.key", "bitrank.content"
"""Tags of a run: what identifies it, and the hash of all that it shows."""
SWEEP, POINT = "sweep", "sweep.key"
"""Tags of the runs of a sweep: its name; and of those that are a point, the point's key."""
PARENT = "mlflow.parentRunId"
"""MLflow's own tag: the id of the run that a run is shown under."""
DATABASE = "mlflow.db"


@dataclass(frozen=True, kw_only=True)
class Store:
    uri: str
    folder: Path | None
    """Of this project's own store; null where MLFLOW_TRACKING_URI names another one."""

    @property
    def shown(self) -> str:
        """Where to look, without a password and without the path to the project."""
        return hide_secrets(self.uri) if self.folder is None else str(paths.MLFLOW / DATABASE)

    @property
    def database(self) -> Path | None:
        return None if self.folder is None else self.folder / DATABASE

    @property
    def artifacts(self) -> str | None:
        """Where the files of new runs go; null where a server decides that."""
        return None if self.folder is None else (self.folder / "artifacts").as_posix()


def own_store() -> Store:
    """The main project's store, also in a temporary copy of it."""
    folder = (paths.PROJECT / paths.MLFLOW).resolve()
    return Store(uri=f"sqlite:///{(folder / DATABASE).as_posix()}", folder=folder)


def find_store() -> Store:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return Store(uri=uri, folder=None) if uri else own_store()


def hide_secrets(text: str) -> str:
    """`text` without user, password and query of its URLs (MLflow quotes them), or a home path."""
    without_user = re.sub(r"://[^/\s]*@", "://", text)
    return hide_home(re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", without_user))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run as it should stand. What it shows is computed only if it does not stand so."""

    key: str
    content: str
    """Differs where what it shows does."""
    status: Literal["FINISHED", "FAILED", "RUNNING"] = "FINISHED"
    lasting: bool = False
    """Whether the run is brought up to date where it stands, since others refer to it; else
    another run takes its place."""
    project: Callable[[], Projection]


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run as it stands."""

    run_id: str
    status: str
    key: str | None
    content: str | None
    parent: str | None
    """The id of the run that it stands under."""


def describe_held(run: Any) -> Held:
    """MLflow's own description of a run, as `find_held` tells of one."""
    key, content, parent = (run.data.tags.get(name) for name in (KEY, CONTENT, PARENT))
    info = run.info
    return Held(run_id=info.run_id, status=info.status, key=key, content=content, parent=parent)


def find_whole(wanted: Iterable[Wanted], held: Iterable[Held]) -> dict[str, Held]:
    """By key, what stands as it should. Where two runs have a key, neither does."""
    by_key: dict[str | None, list[Held]] = {}
    for run in held:
        by_key.setdefault(run.key, []).append(run)
    alone = {one.key: by_key[one.key][0] for one in wanted if len(by_key.get(one.key, ())) == 1}
    should = {one.key: (one.status, one.content) for one in wanted}
    return {key: run for key, run in alone.items() if should[key] == (run.status, run.content)}


def find_held(store: Store, experiment: str, tag: str, value: str) -> list[Held]:
    """The active runs with this tag, in one query; none where the store is not our own."""
    rows = _query(
        store,
        """SELECT run.run_uuid, run.status, key.value, content.value, parent.value
        FROM experiments AS experiment JOIN runs AS run USING (experiment_id)
        JOIN tags AS sought ON sought.run_uuid = run.run_uuid
            AND sought.key = ? AND sought.value = ?
        LEFT JOIN tags AS key ON key.run_uuid = run.run_uuid AND key.key = ?
        LEFT JOIN tags AS content ON content.run_uuid = run.run_uuid AND content.key = ?
        LEFT JOIN tags AS parent ON parent.run_uuid = run.run_uuid AND parent.key = ?
        WHERE experiment.name = ? AND run.lifecycle_stage = 'active'
        AND experiment.lifecycle_stage = 'active'""",
        (tag, value, KEY, CONTENT, PARENT, experiment),
    )
    names = ("run_id", "status", "key", "content", "parent")
    return [Held(**dict(zip(names, row, strict=True))) for row in rows]


def latest_experiment(store: Store, tag: str) -> tuple[str, str | None] | None:
    """Of the experiments that carry `tag`, the id of the one with the newest run, and its sweep."""
    rows = _query(
        store,
        """SELECT experiment_id, sweep.value FROM experiments AS experiment
        JOIN experiment_tags AS marked USING (experiment_id)
        LEFT JOIN runs AS run USING (experiment_id)
        LEFT JOIN tags AS sweep ON sweep.run_uuid = run.run_uuid AND sweep.key = ?
        WHERE marked.key = ? AND experiment.lifecycle_stage = 'active'
        ORDER BY run.lifecycle_stage = 'active' DESC, run.start_time DESC, experiment_id DESC
        LIMIT 1""",
        (SWEEP, tag),
    )
    return (str(rows[0][0]), rows[0][1]) if rows else None


def _query(store: Store, query: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
    if store.database is None or not store.database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{store.database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error:
        return []
