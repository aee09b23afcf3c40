"""How a running sweep stands, shown while it runs: points done, running, failed, time left.

What is shown is read from the sweep's files, so it is right wherever the points run.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from bitrank.manifest import Outcome, SweepFolder
from bitrank.points import RAN
from bitrank.sweep_projection import ENDED, FAILURES

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 60.0
LAST_CHARACTERS = 20_000
"""Of a point's log, in which its stage is looked for."""


@contextmanager
def watching(sweep: SweepFolder, keys: Sequence[str]) -> Iterator[None]:
    """Tell of every point that ends, and now and then of those that run."""
    ending = threading.Event()
    watch = threading.Thread(target=_watch, args=(sweep, keys, ending), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ending.set()
        watch.join()


def _watch(sweep: SweepFolder, keys: Sequence[str], ending: threading.Event) -> None:
    start = last_line = time.monotonic()
    known = sweep.outcomes(keys)
    num_ended = 0
    bar = tqdm(total=len(keys), unit="points", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    while True:
        is_last = ending.wait(SECONDS_BETWEEN_LOOKS)
        now = sweep.outcomes(keys)
        for key in keys:
            if now[key] != known[key] and now[key].status in ENDED:
                num_ended += 1
                bar.update()
                tqdm.write(_tell_point(key, now[key]), file=sys.stderr)
        known = now
        line = _tell_all(sweep, now, num_ended, time.monotonic() - start)
        bar.set_postfix_str(line)
        if bar.disable and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(line, file=sys.stderr, flush=True)
        if is_last:
            bar.close()
            return


def _tell_point(key: str, outcome: Outcome) -> str:
    took = "" if outcome.seconds is None else f" after {_in_words(outcome.seconds)}"
    ran, restored = outcome.stages_ran, outcome.stages_restored
    stages = (
        ""
        if ran is None or restored is None
        else (f" ({len(ran)} stages ran, {len(restored)} restored)")
    )
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.status}: {key}{took}{stages}{reason}"


def _tell_all(
    sweep: SweepFolder, now: Mapping[str, Outcome], num_ended: int, elapsed: float
) -> str:
    done = sum(outcome.status == "done" for outcome in now.values())
    failed = sum(outcome.status in FAILURES for outcome in now.values())
    running = [key for key, outcome in now.items() if outcome.status == "running"]
    shown = ", ".join(f"{key} {_stage(sweep, key)}".strip() for key in running[:4])
    more = f" and {len(running) - 4} more" if len(running) > 4 else ""
    left = len(now) - done - failed
    # Points that ran at the same time count as many times.
    each = elapsed / num_ended if num_ended else None
    time_left = "unknown" if each is None else f"about {_in_words(each * left)}"
    return f"{done} done, {failed} failed, running: {shown or 'none'}{more}; time left {time_left}"


def _stage(sweep: SweepFolder, key: str) -> str:
    log = sweep.log(key)
    printed = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    stages = RAN.findall(printed[-LAST_CHARACTERS:])
    return f"({stages[-1]})" if stages else ""


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
