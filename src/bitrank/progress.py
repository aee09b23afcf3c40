"""Progress of long work: a bar in a terminal, plain lines with the same content in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from bitrank import processes

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts steps; shows the latest values, the rate and the time left."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._before = done
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm[None] | None = None
        self._shown = processes.is_first()
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True)

    def advance(self, steps: int = 1, **values: str) -> None:
        """Count `steps` more; `values` are shown as they are, such as loss="1.23"."""
        self._done += steps
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(steps)
            return
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or self._done == self._total
        if self._shown and due:
            self._last_line = now
            print(self._line(now - self._start, values), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, elapsed: float, values: dict[str, str]) -> str:
        shown = "".join(f"  {name} {value}" for name, value in values.items())
        left = elapsed / max(self._done - self._before, 1) * (self._total - self._done)
        return (
            f"{self._title}: {self._done}/{self._total} {self._unit}{shown}"
            f"  elapsed {elapsed:.0f} s  left {left:.0f} s"
        )


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """`done`: what an earlier process did already."""
    shown = Progress(title, total, unit, done)
    try:
        yield shown
    finally:
        shown.close()
