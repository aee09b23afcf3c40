"""The user's own rows as a Parquet table; an error names the row, counted from 1."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet

from bitrank import identity
from bitrank.errors import UserError, make_each
from bitrank.pins import ParquetRows
from bitrank.rows import Loaded, make_row


def load(rows: ParquetRows, downloads: Path) -> Loaded:
    """Raises UserError: not a Parquet file, or no group field."""
    try:
        table = pyarrow.parquet.read_table(rows.path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{rows.path} is not a Parquet file that can be read: {reason}") from None
    made = make_each(
        lambda numbered: make_row(numbered[1], f"{rows.path}:{numbered[0]}", rows.group_field),
        enumerate(table, start=1),
    )
    return Loaded(made, {"sha256": identity.hash_file(Path(rows.path))})
