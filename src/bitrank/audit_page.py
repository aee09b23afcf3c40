"""The label audit as a page that a person reads before believing a training run.

Each example row is shown token by token, as the model sees it: what is trained, what is only read,
and what white space hides. Trained tokens are bold and underlined, not only coloured. The page is
one file that loads nothing, and stays readable on a phone and in dark mode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")
"""How special tokens are written by the tokenizers in use, such as <|end|>, <s> or [PAD]."""
VISIBLE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
LABELS = {
    "num_rows": "rows",
    "num_tokens": "tokens",
    "num_supervised_tokens": "trained tokens",
    "supervised_share": "share of trained tokens",
    "longest_tokens": "tokens of the longest row",
    "num_truncated": "truncated rows",
    "num_doubled_bos": "rows with a doubled start token",
    "num_untrained_end": "rows with an untrained end token",
}
"""What the page calls the numbers of the summary; others stand under their own name."""
FAULTS = ("num_truncated", "num_doubled_bos", "num_untrained_end")
"""Counts that should be 0."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One encoded row. `tokens` and `trained` have one length."""

    split: str
    answer: str
    """The answer as it was written, to hold against what is trained."""
    tokens: Sequence[str]
    """Each token decoded alone."""
    trained: Sequence[bool]
    truncated: bool


@dataclass(frozen=True)
class Piece:
    """A token as the page shows it."""

    text: str
    trained: bool
    special: bool
    breaks: bool
    """A new line follows, as in the text."""


def render_audit(rows: Sequence[AuditRow], summary: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    `summary` holds counts, and shares from 0 to 1 under names that end in `_share`; null is shown
    as unknown.

    Raises:
        ValueError: a row has not as many flags as tokens.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    numbers = [
        (LABELS.get(key, key), _format(key, value), key in FAULTS and bool(value))
        for key, value in summary.items()
    ]
    shown = [(row, split_pieces(row)) for row in rows]
    return environment.get_template("audit.html.jinja").render(rows=shown, numbers=numbers)


def split_pieces(row: AuditRow) -> list[Piece]:
    """The row's tokens with white space made visible."""
    return [
        Piece(
            text="".join(VISIBLE.get(character, character) for character in token) or "∅",
            trained=trained,
            special=SPECIAL.fullmatch(token) is not None,
            breaks=token.endswith("\n"),
        )
        for token, trained in zip(row.tokens, row.trained, strict=True)
    ]


def _format(key: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if key.endswith("_share"):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else str(value)
