"""The one kind of exception that is shown to a person without a traceback.

A `UserError` says what is wrong in the user's own terms (a file, a line, a key) and what to do.
Everything else that escapes is a defect of bitrank and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

MOST_SHOWN = 10
"""Faults of a file that are told one by one; the others are counted."""

T = TypeVar("T")
R = TypeVar("R")


class UserError(Exception):
    """A fault in the input: the message names it and the cure."""


class ConfigError(UserError):
    """All faults of a configuration at once, one line each."""

    subject = "the configuration has"

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        noun = "fault" if len(self.faults) == 1 else "faults"
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"{self.subject} {len(self.faults)} {noun}:{lines}")


class RowsError(UserError):
    """The faults of many rows at once; a single one is told as it is."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        if len(self.faults) == 1:
            super().__init__(self.faults[0])
            return
        lines = "".join(f"\n  {fault}" for fault in self.faults[:MOST_SHOWN])
        rest = len(self.faults) - MOST_SHOWN
        more = f"\n  and {rest} more" if rest > 0 else ""
        super().__init__(f"{len(self.faults)} rows cannot be used:{lines}{more}")


def make_each(make: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`make` of every item, in order.

    Raises:
        RowsError: with the message of every `UserError` that `make` raised.
    """
    made, faults = [], []
    for item in items:
        try:
            made.append(make(item))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise RowsError(faults)
    return made
