"""Tables of values that remember what they are: shown rounded, kept exact.

A cell holds the value in base units beside the text that a person reads, so a CSV keeps every
digit and every byte while the page shows MiB. What is not known is shown as "unknown", what has
no record as "missing"; neither is ever 0. A value with a standard error is rounded by the error's
second digit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any, Literal

from bitrank.runs import Run

UNKNOWN, MISSING, NOT_APPLICABLE = "unknown", "missing", "–"
Kind = Literal["bytes", "seconds", "hash", "share", "rate", "plain"]


@dataclass(frozen=True)
class Cell:
    text: str
    value: Any = None
    """In base units; null where unknown, missing or not applicable."""
    stderr: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    runs: tuple[str, ...] = ()
    """Keys of the runs that it names, which a page links to."""


@dataclass(frozen=True)
class Column:
    key: str
    """Heading in the CSV, with the unit where there is one."""
    heading: str
    with_stderr: bool = False
    """The CSV gets a column `<key>_stderr` beside it."""
    with_interval: bool = False
    """The CSV gets columns `<key>_low` and `<key>_high` beside it."""

    @property
    def keys(self) -> list[str]:
        """Of the CSV."""
        stderr = [f"{self.key}_stderr"] if self.with_stderr else []
        ends = [f"{self.key}_low", f"{self.key}_high"] if self.with_interval else []
        return [self.key, *stderr, *ends]


@dataclass(frozen=True, kw_only=True)
class Table:
    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    tells_runs: bool = False
    """Each row is a run, where the links of all tables lead."""

    def is_numeric(self, column: int) -> bool:
        """Whether all that is known in a column is numbers."""
        values = [row[column].value for row in self.rows if row[column].value is not None]
        return bool(values) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        )


def to_csv(table: Table) -> str:
    """Base units at full precision, an empty field for what is null."""
    stream = io.StringIO()
    # Every text is quoted: Python 3.11 leaves a carriage return bare, which ends a row.
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([key for column in table.columns for key in column.keys])
    for row in table.rows:
        fields: list[Any] = []
        for column, cell in zip(table.columns, row, strict=True):
            fields.append(cell.value)
            if column.with_stderr:
                fields.append(cell.stderr)
            if column.with_interval:
                fields.extend(cell.interval)
        writer.writerow(fields)
    return stream.getvalue()


def text(value: str) -> Cell:
    return Cell(value, value)


def show(value: Any, kind: Kind = "plain") -> Cell:
    """A value as a person reads it; null is "unknown"."""
    return Cell(format_value(value, kind), value)


def look_up(run: Run, stage: str, *keys: str, kind: Kind | None = None) -> Cell:
    """A value of a record; its kind, unless given, is told by the key's ending."""
    if stage not in run.records:
        return Cell(MISSING)
    value = run.find(stage, *keys)
    if isinstance(value, Mapping | list):
        return Cell(format_value(value), str(format_value(value)))
    return show(value, kind or kind_of(keys[-1]))


def measured(value: float | None, stderr: float | None, *, signed: bool = False) -> Cell:
    """A mean with its standard error, both rounded at the error's second digit."""
    if value is None:
        return Cell(UNKNOWN)
    digits = _digits(stderr)
    shown = _round(value, digits, signed)
    error = UNKNOWN if stderr is None else f"{stderr:,.{digits}f}"
    return Cell(_minus(f"{shown} ± {error}"), value, stderr)


def interval(low: float, high: float, stderr: float) -> Cell:
    """Two ends, rounded as `measured` rounds; a text in the CSV too."""
    return text(_minus(" to ".join(_round(end, _digits(stderr), True) for end in (low, high))))


def percent(share: float, stderr: float | None) -> Cell:
    """A share with its standard error as a person reads it; a fraction in the CSV."""
    digits = min(2, _digits(None if stderr is None else 100 * stderr))
    error = UNKNOWN if stderr is None else f"{100 * stderr:.{digits}f}"
    return Cell(_minus(f"{_round(100 * share, digits, False)} ± {error} %"), share, stderr)


def _digits(stderr: float | None) -> int:
    return min(6, max(0, 1 - floor(log10(stderr)))) if stderr else 3


def _round(value: float, digits: int, signed: bool) -> str:
    sign = "+" if signed and round(value, digits) else ""
    return f"{value:{sign}z,.{digits}f}"  # z: what rounds to zero has no minus either


def kind_of(key: str) -> Kind:
    """How a value is shown, from the ending that every key with a unit has."""
    endings: dict[str, Kind] = {
        "_bytes": "bytes", "seconds": "seconds", "_hash": "hash", "_share": "share",
        "tokens_per_second": "rate",
    }  # fmt: skip
    return next((kind for ending, kind in endings.items() if key.endswith(ending)), "plain")


def format_value(value: Any, kind: Kind = "plain") -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping):
        pairs = [f"{key} {format_value(inner)}" for key, inner in value.items()]
        return ", ".join(pairs) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value[:12] if kind == "hash" else value
    return _minus(_format_number(value, kind))


def _format_number(value: float, kind: Kind) -> str:
    if kind == "bytes":
        return format_bytes(value)
    if kind == "seconds":
        return f"{_three_digits(value)} s" if value < 100 else f"{value:,.0f} s"
    if kind == "share":
        return f"{_three_digits(100 * value)} %"
    unit = " tokens/s" if kind == "rate" else ""
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}{unit}"
    return f"{value:.4g}{unit}"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def format_bytes(value: float) -> str:
    """Powers of 1024, with a digit after the point from MiB on."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:,.{2 if unit == 'GiB' else 1}f} {unit}"
    return f"{value:,.0f} B"


def _minus(shown: str) -> str:
    return shown.replace("-", "−") if "e-" not in shown else shown


def ranged(
    value: float | None,
    low: float | None,
    high: float | None,
    kind: Kind = "plain",
    *,
    signed: bool = False,
) -> Cell:
    """A mean with its interval, rounded at the second digit of half the interval's width.

    Where both ends are the value, it has no noise and is shown by itself.
    """
    if value is None:
        return Cell(UNKNOWN)
    if low is None or high is None or low == high:
        plus = "+" if signed and value > 0 else ""
        noise = "" if low is not None and low == high else f" [{UNKNOWN}]"
        return Cell(f"{plus}{format_value(value, kind)}{noise}", value, interval=(low, high))
    scale, unit = {"share": (100.0, " %"), "bytes": (2.0**-20, " MiB")}.get(kind, (1.0, ""))
    digits = min(6, max(0, 1 - floor(log10(scale * (high - low) / 2))))
    sign = "+" if signed else ""
    mean, *ends = (
        f"{scale * number:{sign if round(scale * number, digits) else ''}z,.{digits}f}"
        for number in (value, low, high)
    )
    return Cell(_minus(f"{mean}{unit} [{ends[0]}, {ends[1]}]"), value, interval=(low, high))
