"""The user's own rows as a table in text: UTF-8, the fields named in the first line.

Quoting is that of RFC 4180: a cell with a delimiter, a quote or a new line in it stands between
quotes, and a quote inside is doubled. Empty lines are passed over.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from bitrank import identity
from bitrank.errors import UserError, make_each
from bitrank.pins import CsvRows
from bitrank.rows import Loaded, RawRow, make_row, read_text


def load(rows: CsvRows, downloads: Path) -> Loaded:
    """Raises UserError: quotes or cells that do not fit, or no group field."""
    table = list(_records(rows))
    if not table:
        return Loaded([], {})
    header, names = table[0]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"{rows.path}:{header}: each column needs a name of its own, got {names}")

    def parse(numbered: tuple[int, list[str]]) -> RawRow:
        number, cells = numbered
        where = f"{rows.path}:{number}"
        if len(cells) != len(names):
            raise UserError(
                f"{where}: {len(cells)} cells, the first line names {len(names)} columns; add what "
                f"is missing, or put a cell that holds {rows.delimiter!r} between quotes"
            )
        return make_row(dict(zip(names, cells, strict=True)), where, rows.group_field)

    return Loaded(make_each(parse, table[1:]), {"sha256": identity.hash_file(Path(rows.path))})


def _records(rows: CsvRows) -> Iterator[tuple[int, list[str]]]:
    """(line at which it begins, cells) of each record that is not empty.

    What follows a broken quote cannot be told apart into records, so that it ends the reading.
    """
    stream = io.StringIO(read_text(rows.path), newline="")
    reader = csv.reader(stream, delimiter=rows.delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{rows.path}:{begin}: not CSV ({error}); a quote that opens a cell must close it, "
                "and one inside it is doubled"
            ) from None
        if cells is None:
            return
        if cells:
            yield begin, cells
