"""The user's own rows: one JSON object a line, UTF-8. Blank lines are passed over."""

from __future__ import annotations

import json
from pathlib import Path

from bitrank import identity
from bitrank.errors import UserError, make_each
from bitrank.pins import JsonlRows
from bitrank.rows import Loaded, RawRow, make_row, read_text


def load(rows: JsonlRows, downloads: Path) -> Loaded:
    """Raises UserError: lines that are no JSON object, or have no group field."""

    def parse(numbered: tuple[int, str]) -> RawRow:
        where = f"{rows.path}:{numbered[0]}"
        return make_row(_parse(numbered[1], where), where, rows.group_field)

    # Not `splitlines`: a JSON text may hold characters that it takes for the end of a line.
    lines = enumerate(read_text(rows.path).split("\n"), start=1)
    made = make_each(parse, ((number, line) for number, line in lines if line.strip()))
    return Loaded(made, {"sha256": identity.hash_file(Path(rows.path))})


def _parse(line: str, where: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: must be a JSON object with named fields, got {line[:40]!r}")
    return fields
