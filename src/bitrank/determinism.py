"""Whether a computation gives the same bytes again: what torch itself says while it runs.

`environment.prepare_runtime` asks torch for deterministic kernels and to warn where there are none.
Those warnings are collected here, so that a record names them. Silence proves something on a CPU,
whose sums depend on the number of threads alone; on a GPU it does not, because kernels that are not
torch's own say nothing. There `benchmarks/determinism.py` repeats a run and tells the spread.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

from bitrank import processes

WARNING = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def watching() -> Iterator[set[str]]:
    """Collect the operations that torch says have no deterministic form; other warnings pass."""
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=WARNING.pattern)
        show = warnings.showwarning

        def collect(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            found = WARNING.match(str(message))
            if found is None:
                show(message, category, filename, lineno, file, line)
            else:
                seen.add(found[1])

        warnings.showwarning = collect
        yield seen


def describe(device: torch.device, seen: Collection[str]) -> dict[str, Any]:
    """`deterministic`, with the reason; null where nothing can tell."""
    known, reason = _judge(device, seen)
    return {"deterministic": known, "reason": reason}


def _judge(device: torch.device, seen: Collection[str]) -> tuple[bool | None, str]:
    if seen:
        return False, f"no deterministic form on {device.type}: {', '.join(sorted(seen))}"
    if not torch.are_deterministic_algorithms_enabled():
        return None, "torch was not asked for deterministic algorithms"
    if processes.count() > 1:
        return None, f"sums over {processes.count()} processes, in an order that nothing fixes"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return True, f"on a CPU of this kind, {threads} threads add up in the same order each time"
    return None, (
        f"torch names no operation without a deterministic form on {device.type}; kernels of other "
        "libraries do not tell"
    )
