"""Where rows come from: one module a kind, so that adding one leaves the others cached.

Each module has `load(rows, downloads) -> Loaded`. It is found by the source's `kind`, and
`dvc.yaml` names exactly that module among the dependencies of `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bitrank.data_config import RowSource
from bitrank.errors import UserError
from bitrank.pins import FileRows, NoRows


@dataclass(frozen=True)
class RawRow:
    fields: Mapping[str, Any]
    group: str
    """Rows of one group never straddle two splits."""
    where: str
    """File and line, or code: what an error message names."""


@dataclass(frozen=True)
class Loaded:
    rows: Sequence[RawRow]
    origin: Mapping[str, str]
    """What tells these rows from others of the same name: a commit, or a file's sha256."""


def load(rows: RowSource | NoRows, key: str, downloads: Path) -> Loaded:
    """The rows of a source, which the user writes under `key`.

    Raises:
        UserError: no such file, nothing in it, or rows that cannot be read, each with its place.
    """
    if isinstance(rows, FileRows) and not Path(rows.path).is_file():
        raise UserError(f"`{key}.path`: {rows.path} is not a file; give the path of one")
    module = import_module(f"bitrank.rows.{rows.kind}")
    loaded: Loaded = module.load(rows, downloads)
    if not loaded.rows and not isinstance(rows, NoRows):
        raise UserError(f"`{key}`: there are no rows")
    return loaded


def read_text(path: str) -> str:
    """The text of a file, without the mark that some programs put at its beginning.

    Raises:
        UserError: it is not UTF-8, with the line.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
        ) from None


def make_row(fields: Mapping[str, Any], where: str, group_field: str | None) -> RawRow:
    """Raises UserError: the row lacks the field that groups rows."""
    if group_field is None:
        return RawRow(fields, where, where)
    if fields.get(group_field) is None:
        raise UserError(f"{where}: no field {group_field}, which `rows.group_field` names")
    return RawRow(fields, str(fields[group_field]), where)
