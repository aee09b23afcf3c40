"""Parts of a computation that need nothing of each other, each on a thread of its own.

torch splits every operation over its threads, which must then meet at its end. An operation of a
small model takes less than a millisecond: much of the time goes into meetings, and where another
program wants a core, all threads wait for the slowest at each one. A part that one thread computes
alone waits for nobody. torch lets go of Python's lock while it computes, so threads suffice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def count_workers(model: torch.nn.Module, device: torch.device) -> int:
    """How many forward passes of `model` may run at once: torch's threads, or one.

    Only one on a GPU, which computes one after the other anyway, and where a pass writes into the
    model: quantized layers keep a state, and these rotary positions are scaled to the longest row.
    """
    plain = {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rotary = " ".join(str(getattr(module, "rope_type", "")) for module in model.modules())
    if device.type != "cpu" or not plain or "dynamic" in rotary or "longrope" in rotary:
        return 1
    return torch.get_num_threads()


def compute_all(
    compute: Callable[[Part], Result], parts: Sequence[Part], workers: int
) -> Iterator[Result]:
    """`compute` of each part, in order; no more than `workers` + 1 results wait in memory.

    The workers share torch's threads, which are given back at the end.
    """
    workers = min(workers, len(parts))
    if workers <= 1:
        yield from map(compute, parts)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    waiting: deque[Future[Result]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(compute, part))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' number would be that of later threads
