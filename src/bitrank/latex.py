"""Tables for a paper, in LaTeX with booktabs.

A file is one `tabular`, to be put into a `table` with the author's own caption and label. Cells are
those of the report, so the paper says what the report says; the notes stand above as comments.
"""

from __future__ import annotations

import re

from bitrank.tables import Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "−": "$-$", "±": r"$\pm$", "→": r"$\to$", "–": "--", "—": "---", "×": r"$\times$",
    "≤": r"$\le$", "≥": r"$\ge$", "Δ": r"$\Delta$", "“": "``", "”": "''", "’": "'", "…": r"\dots{}",
    "[": "{[}", "]": "{]}", "\n": " ",
}  # fmt: skip
"""Brackets in braces: at the beginning of a row one would be taken for an option of the line break
before it. The signs are those of `tables`; other letters are left to the input encoding."""


LONG = 36
"""Letters from which a column is broken into lines, each as wide as about so many."""


def to_latex(table: Table) -> str:
    """Needs the package booktabs; numbers are aligned to the right, long texts broken."""
    sides = "".join(_side(table, place) for place in range(len(table.columns)))
    lines = [f"% {_comment(text)}" for text in (table.title, *table.notes)]
    lines += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
    lines += [_row([column.heading for column in table.columns]), r"\midrule"]
    lines += [_row([cell.text for cell in row]) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _side(table: Table, place: int) -> str:
    if any(len(row[place].text) > LONG for row in table.rows):
        return f"p{{{LONG // 2}em}}"
    return "r" if table.is_numeric(place) else "l"


def escape_latex(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)


def _row(cells: list[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + r" \\"


def _comment(text: str) -> str:
    return re.sub(r"\s+", " ", text)
