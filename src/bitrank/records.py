"""What a stage leaves behind for people and programs: one JSON record, in base units.

A record has three parts, and what belongs where is the contract that makes runs comparable:

- `treatment`: what was done, read from the live objects, not from the configuration.
- `result`: what came out; the same inputs give the same bytes, on any run of the same machine kind.
- `observation`: time, memory, host, versions; never compared for equality.

Bytes and seconds are the units; unknown is null, never 0. Identities are sha256 in hexadecimal.
JSON is the truth; MLflow and the report are projections of it. The keys of each stage's parts stand
in README, "Records". Item logs stand beside the records: one JSON line an evaluated item, with the
hash of the document that was asked, so that two runs can be paired item by item.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank.errors import UserError

SCHEMA_VERSION = 2

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[int, Migration] = {
    1: lambda body: body,  # it had its version as a key of its own
}
"""From a version to the next one; a committed record of any version stays readable for ever."""


@dataclass(frozen=True, kw_only=True)
class Record:
    stage: str
    treatment: Mapping[str, Any]
    result: Mapping[str, Any]
    observation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One evaluated document. Log-likelihoods are natural logarithms, in nats."""

    doc_hash: str
    """sha256 of the document's canonical JSON."""
    target: str
    prediction: str | None
    """The choice with the highest log-likelihood, or the text that was generated; null where there
    is nothing to answer."""
    correct: bool | None
    nll: float | None
    """-log p(target | prompt) over the whole vocabulary; null where what answers has none."""
    choice_nll: float | None
    """-log of the target's share among the choices."""
    num_tokens: int | None
    """Tokens that `nll` sums over; null where lm-eval does not tell."""


def canonical_json(value: object) -> str:
    """The one text of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_json(record: Record) -> str:
    """A pair: the schema version, and the record.

    In a mapping DVC would look for points to plot, and name each empty list that it finds.
    """
    body = [SCHEMA_VERSION, vars(record)]
    return json.dumps(body, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_record(record: Record, path: Path) -> None:
    """Raises ValueError for NaN or infinity: a record never holds them."""
    write_text(path, to_json(record))


def read_record(path: Path) -> Record:
    """Return a record of this or an older schema version.

    Raises:
        UserError: no such file, not a record, or written by a newer bitrank.
    """
    version, body = _read_versioned(path)
    while version < SCHEMA_VERSION:
        body = MIGRATIONS[version](body)
        version += 1
    return Record(**body)


def read_version(path: Path) -> int:
    """The schema version that a record was written in; raises as `read_record`."""
    return _read_versioned(path)[0]


def _read_versioned(path: Path) -> tuple[int, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; `dvc repro` makes it")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version, body = body if isinstance(body, list) else (body.pop("schema_version"), body)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a bitrank record; `dvc repro` makes it anew") from None
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, this bitrank knows {SCHEMA_VERSION}: update it"
        )
    return version, body


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, keys in their given order."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Raises UserError: the file does not exist (it is an artifact of an earlier stage)."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; `dvc repro` makes it")
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def write_items(path: Path, items: Iterable[Item]) -> None:
    write_jsonl(path, (vars(item) for item in items))


def read_items(path: Path) -> list[Item]:
    return [Item(**row) for row in read_jsonl(path)]
