"""What was looked at in a sweep and what was wrong with it, all of it at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from bitrank.errors import ConfigError

MOST_NAMED = 3
"""Points that a fault of several names; the others are counted."""


class VerificationError(ConfigError):
    """All faults of a sweep."""

    subject = "the sweep has"


@dataclass(frozen=True)
class Fault:
    point: str
    """Its key; empty for what concerns the whole sweep."""
    file: str
    field: str
    detail: str


@dataclass(frozen=True)
class Inspection:
    counts: Counter[str] = field(default_factory=Counter)
    """How often something of each kind was looked at."""
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """By kind."""
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and why; no faults."""

    def expect(self, kind: str, good: bool, fault: Fault) -> bool:
        """Count one look at something; where it is not `good`, that is the fault."""
        self.counts[kind] += 1
        if not good:
            self.faults[kind].append(fault)
        return good

    def rows(self) -> list[tuple[str, str, str]]:
        """(kind, how many were checked, how many faults) of each kind."""
        return [
            (kind, f"{count:,}", f"{len(self.faults.get(kind, ())):,}")
            for kind, count in self.counts.items()
        ]

    def tell_faults(self) -> Iterator[str]:
        """A line each; what several points have in common is told once."""
        points: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for fault in (fault for of_kind in self.faults.values() for fault in of_kind):
            points[fault.file, fault.field, fault.detail].append(fault.point)
        for (file, name, detail), keys in points.items():
            named = ", ".join(keys[:MOST_NAMED])
            rest = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
            where = [f"{named}{rest}", file, name]
            yield ": ".join([part for part in where if part] + [detail])

    def check(self) -> None:
        """Raises VerificationError: with all faults."""
        told = list(self.tell_faults())
        if told:
            raise VerificationError(told)


def short(sha256: object) -> str:
    """The first digits of a hash; null is unknown."""
    return "unknown" if sha256 is None else str(sha256)[:12]
