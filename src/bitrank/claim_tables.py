"""The tables of the claims: a verdict for each, and the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from bitrank.claims import Claim
from bitrank.evidence import METRICS
from bitrank.resampling import Estimate
from bitrank.statistics import LEVEL
from bitrank.tables import (
    NOT_APPLICABLE,
    Cell,
    Column,
    Kind,
    Table,
    format_value,
    ranged,
    show,
    text,
)
from bitrank.verdicts import Place, Verdict


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        rows.append([
            text(verdict.name),
            text(claim.statement),
            text(f"{verdict.outcome} (predicted)" if claim.predicted else verdict.outcome),
            text(claim.reading),
            text(f"{claim.metric}: {write_threshold(claim)}"),
            text(_tell_places(verdict)),
            text(claim.source),
        ])  # fmt: skip
    return Table(
        name="claims",
        title="Published claims, and what this sweep says of them",
        columns=[
            Column("claim", "Claim"), Column("statement", "What is said"),
            Column("verdict", "Verdict"), Column("reading", "Read as"),
            Column("threshold", "Threshold"), Column("tested", "Tested"),
            Column("source", "Source"),
        ],
        rows=rows,
        notes=[
            "Holds: the interval is within the threshold wherever it was tested. Refuted: it is "
            "beyond it somewhere, and the claim was made without conditions or under those of that "
            "run. Differs here: beyond it, but the claim was made of something else. Not "
            "separable: it lies across.",
        ],
    )  # fmt: skip


def evidence_table(verdicts: Sequence[Verdict]) -> Table:
    """Every place where a claim was tested, with its runs."""
    places = [(verdict, place) for verdict in verdicts for place in verdict.places]
    used = sorted({verdict.claim.metric for verdict in verdicts if verdict.places})
    return Table(
        name="evidence",
        title="What the verdicts rest on",
        columns=[
            Column("claim", "Claim"), Column("where", "Where"), Column("metric", "Metric"),
            Column("of", "Of it"), Column("found", "Found", with_interval=True),
            Column("verdict", "Verdict"), Column("num_seeds", "Seeds"), Column("runs", "Runs"),
        ],
        rows=[_evidence_row(verdict, place) for verdict, place in places],
        notes=[
            f"Intervals of {1 - LEVEL:.0%} for all places of a claim together; counts have none. "
            "Times: over the steps of one measurement; how it differs from day to day is not in "
            "it.",
            *(f"{metric}: {METRICS[metric]}." for metric in used),
        ],
    )  # fmt: skip


def _evidence_row(verdict: Verdict, place: Place) -> list[Cell]:
    claim, found = verdict.claim, place.found
    shown, seeds = Cell(str(found)), Cell(NOT_APPLICABLE)
    if isinstance(found, Estimate):
        kind, signed = kind_of_claim(claim), claim.threshold.of != "value"
        shown = ranged(found.mean, found.low, found.high, kind, signed=signed)
        seeds = show(found.num_seeds)
    return [
        text(verdict.name),
        text(place.where),
        text(claim.metric),
        text(claim.threshold.of),
        shown,
        text(place.outcome),
        seeds,
        Cell(f"{len(place.keys)}", " ".join(place.keys), runs=tuple(place.keys)),
    ]


def kind_of_claim(claim: Claim) -> Kind:
    """How its number is shown."""
    if claim.threshold.of == "relative change" or claim.metric.endswith(("_share", "_rise")):
        return "share"
    return "bytes" if claim.metric.endswith("_bytes") else "plain"


def write_threshold(claim: Claim) -> str:
    kind, bounds = kind_of_claim(claim), claim.threshold
    least, most = (
        None if bound is None else format_value(bound, kind)
        for bound in (bounds.at_least, bounds.at_most)
    )
    if least is not None and most is not None:
        return f"{bounds.of} from {least} to {most}"
    return f"{bounds.of} at least {least}" if most is None else f"{bounds.of} at most {most}"


def _tell_places(verdict: Verdict) -> str:
    if verdict.outcome == "not measured here":
        return f"missing: {verdict.missing}"
    counts: dict[str, list[str]] = {}
    for place in verdict.places:
        counts.setdefault(place.outcome, []).append(place.where)
    return "; ".join(f"{outcome}: {', '.join(where)}" for outcome, where in counts.items())
