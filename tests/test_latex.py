from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrank.latex import escape_latex, to_latex
from bitrank.tables import Column, Table, ranged, show, text


def table(*names: str) -> Table:
    rows = [[text(name), ranged(0.5, 0.4, 0.6, signed=True), show(3)] for name in names]
    columns = [Column("name", "Name"), Column("x", "Change"), Column("n", "N")]
    return Table(name="t", title="A title", columns=columns, rows=rows, notes=["One\nnote."])


def test_a_table_is_a_tabular_with_rules_and_numbers_to_the_right() -> None:
    assert to_latex(table("a_b")) == (
        "% A title\n% One note.\n"
        "\\begin{tabular}{lrr}\n\\toprule\nName & Change & N \\\\\n\\midrule\n"
        "a\\_b & +0.50 {[}+0.40, +0.60{]} & 3 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


@given(st.text())
def test_no_text_can_end_a_cell_or_a_row_or_begin_a_command(name: str) -> None:
    escaped = escape_latex(name)
    bare = re.sub(r"\\(text\w+|dots)\{\}|\\[&%$#_{}]|\$-\$|\$\\(pm|to|times|le|ge|Delta)\$|"
                  r"\{\[\}|\{\]\}", "", escaped)  # fmt: skip
    assert not set(bare) & set('\\&%$#_{}~^<>|"\n')


@pytest.mark.parametrize(
    ("sign", "written"), [("−0.1 ± 0.2", "$-$0.1 $\\pm$ 0.2"), ("a → b", "a $\\to$ b"), ("–", "--")]
)
def test_the_signs_of_the_report_have_commands(sign: str, written: str) -> None:
    assert escape_latex(sign) == written
