"""A chosen adapter as a version of a model in MLflow's registry, with its base's identity as tags.

An adapter is worth nothing without the base that it was trained on, so each version says which that
is, by hash. The version belongs to the run that tells of the training; the files of `bitrank
adapters push` are put beside the run's own. An adapter is a version once, by its hash; what the
records say anew is brought up to date there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank import findings, pushing, records, tracking
from bitrank.collection import RUN, Adapter
from bitrank.errors import UserError
from bitrank.model_card import PRIVATE
from bitrank.privacy import hide_home
from bitrank.projection import shorten
from bitrank.runs import TASK
from bitrank.store import KEY, find_store
from bitrank.writer import PUBLISHED, UNCHANGED, Outcome, TrackingError, Writer, open_store

HASH = "adapter.hash"
"""The tag by which a version is found."""
FOLDER = "adapter"
"""Of the run's files, where the adapter lies."""
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Registered:
    name: str
    version: str
    store: str
    outcome: Outcome


def register(adapter: Adapter, experiment: str, name: str | None = None) -> Registered:
    """Bring the registry to hold the adapter as one version of the model `name`.

    Raises:
        TrackingError: the store cannot be reached, or refuses.
        UserError: the name is not fit, the weights are not here, PEFT could not load them, or the
            records do not belong together.
    """
    name = name or _name(adapter)
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r} must be of letters, digits, '.', '_' and '-'")
    pushing.check(adapter)
    run_id = _publish(adapter, experiment)
    with tempfile.TemporaryDirectory() as folder:
        pushing.fill(adapter, Path(folder))
        store = find_store()
        with open_store(store, experiment) as writer:
            run = _run_of(writer, adapter) if run_id is None else writer.client.get_run(run_id)
            version, outcome = _bring(writer.client, run, name, Path(folder), _tags(adapter))
    return Registered(name=name, version=version, store=store.shown, outcome=outcome)


def _name(adapter: Adapter) -> str:
    parts = [adapter.run.find(stage, "treatment", "name") for stage in ("fetch", "prepare")]
    return re.sub(r"[^\w.-]+", "-", "-".join(str(part) for part in parts if part)) or "adapter"


def _publish(adapter: Adapter, experiment: str) -> str | None:
    """Of the run in `data/results` its id; a sweep's are found by their key."""
    if adapter.name == RUN:
        return tracking.publish(experiment=experiment).run_id
    tracking.publish_point(adapter.folder.parent, adapter.folder.name, experiment)
    return None


def _run_of(writer: Writer, adapter: Adapter) -> Any:
    runs = writer.find(KEY, adapter.name)
    if not runs:
        raise TrackingError(f"the run of {adapter.name} was removed meanwhile: try again")
    return runs[0]


def _bring(
    client: Any, run: Any, name: str, files: Path, tags: dict[str, str]
) -> tuple[str, Outcome]:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    there = _versions(client, name, tags[HASH])
    if there:
        changed = {key: text for key, text in tags.items() if there[0].tags.get(key) != text}
        for key, text in changed.items():
            client.set_model_version_tag(name, there[0].version, key, text)
        return str(there[0].version), PUBLISHED if changed else UNCHANGED
    client.log_artifacts(run.info.run_id, str(files), FOLDER)
    source = f"{run.info.artifact_uri}/{FOLDER}"
    made = client.create_model_version(name, source, run.info.run_id, tags=tags)
    first, *others = _versions(client, name, tags[HASH])
    if made.version in [other.version for other in others]:  # somebody else was quicker
        client.delete_model_version(name, made.version)
    return str(first.version), PUBLISHED


def _versions(client: Any, name: str, adapter_hash: str) -> list[Any]:
    """Those of this adapter, the first made first."""
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(f"name = '{name}'", page_token=token or None)
        found += [version for version in page if version.tags.get(HASH) == adapter_hash]
        token = page.token or None
    return sorted(found, key=lambda version: int(version.version))


def _tags(adapter: Adapter) -> dict[str, str]:
    """What is known, as texts that MLflow keeps; no path of the user's own."""
    known = dict(_known(adapter))
    return {key: shorten(hide_home(str(v))) for key, v in known.items() if v is not None}


def _known(adapter: Adapter) -> Iterator[tuple[str, Any]]:
    find = adapter.run.find
    yield HASH, adapter.adapter_hash
    for key in ("name", "provenance", "license"):
        yield f"base.{key}", find("fetch", "treatment", key)
    for key, value in (find("fetch", "treatment", "source") or {}).items():
        if key not in PRIVATE:
            yield f"base.source.{key}", value
    yield "base.original_hash", find("train", "treatment", "original_hash")
    yield "base.hash", find("train", "treatment", "base_hash")
    yield "base.precision", findings.describe_base(adapter.run)
    yield "adapter.method", adapter.run.method
    rank = find("train", "treatment", "adapter", "rank")
    yield "adapter.rank", None if rank is None else records.canonical_json(rank)
    yield "data.name", find("prepare", "treatment", "name")
    yield "data.hash", find("train", "treatment", "data_hash")
    yield "git.commit", find("train", "observation", "environment", "git_commit")
    for metric in ("acc", "acc_stderr", "nll", "nll_stderr"):
        yield f"score.{metric}", adapter.run.score("adapter", TASK, metric)
