"""The user's own rows: one JSON object a line, UTF-8. Blank lines are passed over."""

from __future__ import annotations

import json
from pathlib import Path

from bitrank.errors import UserError
from bitrank.pins import JsonlRows
from bitrank.rows import RawRow


def load(rows: JsonlRows, downloads: Path) -> list[RawRow]:
    """Raises UserError: no such file, a line that is no JSON object, or no group field in it."""
    path = Path(rows.path)
    if not path.is_file():
        raise UserError(f"`data.rows.path`: {rows.path} does not exist")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{rows.path} is not UTF-8 text (byte {error.start}): convert it") from None
    return [
        _parse(line, f"{rows.path}:{number}", rows.group_field)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parse(line: str, where: str, group_field: str | None) -> RawRow:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: must be a JSON object with named fields, got {line[:40]!r}")
    if group_field is None:
        return RawRow(fields, where, where)
    if group_field not in fields:
        raise UserError(f"{where}: no field {group_field}, which `data.rows.group_field` names")
    return RawRow(fields, str(fields[group_field]), where)
