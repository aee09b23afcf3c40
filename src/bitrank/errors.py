"""The one kind of exception that is shown to a person without a traceback.

A `UserError` says what is wrong in the user's own terms (a file, a line, a key) and what to do.
Everything else that escapes is a defect of bitrank and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A fault in the input: the message names it and the cure."""


class ConfigError(UserError):
    """All faults of a configuration at once, one line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        noun = "fault" if len(self.faults) == 1 else "faults"
        lines = "".join(f"\n  {fault}" for fault in self.faults)
        super().__init__(f"the configuration has {len(self.faults)} {noun}:{lines}")
