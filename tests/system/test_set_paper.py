"""A paper that takes in every table and every figure of a sweep's report compiles."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fake_paper
import pytest
from fake_project import ROOT
from fake_sweep import name_point

from bitrank.sweep_report import write_sweep_report

pytestmark = [pytest.mark.system, pytest.mark.pdflatex]
HEAD = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\usepackage[margin=15mm]{geometry}
\begin{document}
"""


def write_paper(report: Path, paper: Path) -> int:
    """The number of tables and figures that it takes in, one on each page."""
    tables = [
        rf"\noindent\resizebox{{\linewidth}}{{!}}{{\input{{{file.name}}}}}\clearpage"
        for file in sorted((report / "tables").glob("*.tex"))
    ]
    figures = [
        rf"\noindent\includegraphics{{{file.name}}}\clearpage"
        for file in sorted((report / "figures").glob("*.pdf"))
    ]
    paper.write_text("\n".join([HEAD, *tables, *figures, r"\end{document}"]))
    return len(tables) + len(figures)


def test_all_tables_and_figures_compile(tmp_path: Path) -> None:
    """What failed, and a name with signs that mean something to LaTeX, stand in them too."""
    failed = {name_point("int8", 32, seed): "failed" for seed in (0, 1)}
    folder = fake_paper.write_paper(tmp_path, seeds=(0, 1), statuses=failed, count=60)
    write_sweep_report(folder, ROOT / "conf" / "claims")
    report = folder / "report"
    pages = write_paper(report, tmp_path / "paper.tex")
    assert pages > 20
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
             "TEXINPUTS": f".:{report / 'tables'}:{report / 'figures'}:"},
    )  # fmt: skip
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert f"({pages} pages" in log.replace("\n", "")
    assert "Missing character" not in log
