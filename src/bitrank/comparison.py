"""A point's records and item logs beside those of its re-run: the same to the byte, or in what not.

Only the `result` part is compared, never an observation: time and memory of a process are other
ones each time. Hardware, threads and versions of both are told beside it, since they explain what
differs.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitrank import records, runs
from bitrank.errors import UserError
from bitrank.inspection import short

Verdict = Literal["bit-identical", "within tolerance", "different", "failed"]
TOLERANCE = 1e-4
"""Relative. Sums in fp32 have 6e-8 a step; other threads, kernels or processors add up in another
order, which training amplifies. Beyond this share something else has happened. Texts, counts and
answers have no tolerance."""
FLOOR = 1e-7
"""Absolute: what is nothing but rounding, such as the divergence of a merge without loss."""
SETTING = ("python", "platform", "threads", "hardware", "packages")
"""Of the environment in an observation."""
CONSEQUENCE = re.compile(r"result\.(\w+_hash|items\..+)")
"""Hashes of weights and logs: none is near another, so the numbers that follow from them decide."""
HASH = re.compile(r"[0-9a-f]{64}")
MOST_TOLD = 8
"""Differences of a point that are told one by one; the others are counted."""


@dataclass(frozen=True)
class Difference:
    file: str
    field: str
    kept: Any
    found: Any
    verdict: Verdict

    def __str__(self) -> str:
        kept, found = (_shorten(value) for value in (self.kept, self.found))
        return f"{self.file}: {self.field}: {kept} was kept, {found} came out"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    key: str
    verdict: Verdict
    num_compared: int
    """Values, files of item logs among them."""
    differences: Sequence[Difference] = ()
    setting: Sequence[str] = ()
    """In what the two ran differently, which may explain what differs."""
    reason: str | None = None
    """Of a re-run that failed."""

    @property
    def is_good(self) -> bool:
        return self.verdict in ("bit-identical", "within tolerance")

    def tell(self) -> Iterator[str]:
        """Lines for a person: the verdict, what differs, and what ran differently."""
        if self.reason is not None:
            yield f"{self.key}: {self.verdict}: {self.reason}"
            return
        count = f"{len(self.differences):,} of {self.num_compared:,} values differ"
        yield f"{self.key}: {self.verdict}: {count}"
        order = sorted(self.differences, key=lambda d: d.verdict)  # what is different comes first
        for difference in order[:MOST_TOLD]:
            yield f"  {difference.verdict}: {difference}"
        if len(order) > MOST_TOLD:
            yield f"  and {len(order) - MOST_TOLD:,} more"
        yield from (f"  it ran elsewhere: {line}" for line in self.setting)


def compare(key: str, kept: Path, again: Path) -> Comparison:
    """Hold the folder of a point against that of its re-run.

    Raises:
        UserError: a record of either cannot be read.
    """
    first, second = (runs.read_run(folder / "results", {}) for folder in (kept, again))
    compared: list[Difference] = []
    for stage in dict.fromkeys([*first.records, *second.records]):
        sides = [run.find(stage, "result") for run in (first, second)]
        compared.extend(_walk(f"results/{stage}.json", "result", *sides))
    logs = {f.relative_to(s).as_posix() for s in (kept, again) for f in s.glob("items/**/*.jsonl")}
    for name in sorted(logs):
        compared.extend(_compare_logs(name, kept / name, again / name))
    differing = [d for d in compared if d.verdict != "bit-identical"]
    decisive = [d.verdict for d in differing if not CONSEQUENCE.fullmatch(d.field)]
    verdict: Verdict = "bit-identical"
    if differing:
        verdict = "different" if "different" in decisive or not decisive else "within tolerance"
    return Comparison(
        key=key, verdict=verdict, num_compared=len(compared), differences=differing,
        setting=list(dict.fromkeys(_compare_settings(first, second))),
    )  # fmt: skip


def _walk(file: str, field: str, kept: Any, found: Any) -> Iterator[Difference]:
    """Each value of two nested ones, by its dotted key."""
    if isinstance(kept, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*kept, *found]):
            yield from _walk(file, f"{field}.{key}", kept.get(key), found.get(key))
    elif isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        for index, pair in enumerate(zip(kept, found, strict=True)):
            yield from _walk(file, f"{field}.{index}", *pair)
    else:
        yield Difference(file, field, kept, found, _judge(kept, found))


def _judge(kept: Any, found: Any) -> Verdict:
    if type(kept) is type(found) and kept == found:
        return "bit-identical"
    if isinstance(kept, float) and isinstance(found, float | int) and not isinstance(found, bool):
        near = math.isclose(kept, found, rel_tol=TOLERANCE, abs_tol=FLOOR)
        return "within tolerance" if near else "different"
    return "different"


def _compare_logs(name: str, kept: Path, again: Path) -> Iterator[Difference]:
    """The item logs as files; where those differ, item by item."""
    texts = [log.read_bytes() if log.is_file() else None for log in (kept, again)]
    if texts[0] == texts[1] or None in texts:
        one, other = ("a file" if text is not None else "no file" for text in texts)
        yield Difference(name, "bytes", one, other, _judge(one, other))
        return
    try:
        first, second = (records.read_jsonl(log) for log in (kept, again))
    except ValueError:
        yield Difference(name, "lines", "one log", "another, and one cannot be read", "different")
        return
    if len(first) != len(second):
        yield Difference(name, "items", len(first), len(second), "different")
        return
    for number, pair in enumerate(zip(first, second, strict=True), 1):
        yield from _walk(name, f"line {number}", *pair)


def _compare_settings(first: runs.Run, second: runs.Run) -> Iterator[str]:
    for stage in first.records:
        one, other = (
            run.find(stage, "observation", "environment") or {} for run in (first, second)
        )
        for name in SETTING:
            for d in _walk("", name, one.get(name), other.get(name)):
                # A stage that does not use torch knows of no threads.
                if d.verdict != "bit-identical" and None not in (d.kept, d.found):
                    yield f"{d.field}: {d.kept} then, {d.found} now"


def _shorten(value: Any) -> str:
    is_hash = isinstance(value, str) and HASH.fullmatch(value)
    return short(value) if is_hash else textwrap.shorten(repr(value), 80)


def failed(key: str, reason: str | None) -> Comparison:
    return Comparison(key=key, verdict="failed", num_compared=0, reason=reason)


def compare_or_fail(key: str, kept: Path, again: Path) -> Comparison:
    """`compare`, where records that cannot be read are a failure of this point alone."""
    try:
        return compare(key, kept, again)
    except UserError as error:
        return failed(key, str(error))
