"""Where MLflow keeps the runs, told without MLflow, which takes seconds to start.

The store is MLFLOW_TRACKING_URI if that is set, else a SQLite file of this project. Only the
project's own store is ever read here, and only to learn that there is nothing to do: anything
unexpected in it means "not known", and MLflow then has a look itself.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank import paths
from bitrank.projection import Projection, hide_home

KEY, CONTENT = "bitrank.key", "bitrank.content"
"""Tags of a run: what identifies it, and the hash of all that it shows, written last."""
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


def find_published(store: Store, experiment: str, projection: Projection) -> str | None:
    """The id of the one finished run that shows this projection, if the store is our own."""
    rows = _query(
        store,
        """SELECT run.run_uuid, run.status, content.value FROM experiments AS experiment
        JOIN runs AS run USING (experiment_id)
        JOIN tags AS key ON key.run_uuid = run.run_uuid AND key.key = ? AND key.value = ?
        LEFT JOIN tags AS content ON content.run_uuid = run.run_uuid AND content.key = ?
        WHERE experiment.name = ? AND run.lifecycle_stage = 'active'
        AND experiment.lifecycle_stage = 'active'""",
        (KEY, projection.key, CONTENT, experiment),
    )
    whole = len(rows) == 1 and rows[0][1:] == ("FINISHED", projection.content)
    return str(rows[0][0]) if whole else None


def latest_experiment(store: Store, tag: str) -> str | None:
    """The id of the newest experiment that carries `tag`."""
    query = """SELECT max(experiment_id) FROM experiment_tags JOIN experiments
        USING (experiment_id) WHERE key = ? AND lifecycle_stage = 'active'"""
    rows = _query(store, query, (tag,))
    return str(rows[0][0]) if rows and rows[0][0] is not None else None


def _query(store: Store, query: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
    if store.database is None or not store.database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{store.database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error:
        return []
