"""The report of a sweep: `report.md`, and its tables as CSV and LaTeX.

The same records give the same bytes. It is filled into the page of a single run's report, from the
same kinds of sections and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitrank import artifacts, claims, sweep_findings
from bitrank.claim_tables import claims_table, evidence_table
from bitrank.contrasts import compare_all
from bitrank.foreign import foreign_table, read_foreign
from bitrank.latex import to_latex
from bitrank.report import Section, render_markdown
from bitrank.study import read_study
from bitrank.sweep_origins import points_table, runs_table
from bitrank.sweep_tables import (
    contrasts_table,
    controls_table,
    costs_table,
    forgetting_table,
    scores_table,
)
from bitrank.tables import to_csv
from bitrank.verdicts import judge_all

FOLDER = "report"
"""Below the sweep's own."""


def write_sweep_report(
    sweep: Path, known: Path = claims.FOLDER, foreign: Sequence[Path] = ()
) -> str:
    """Write the report of `data/sweeps/<sweep>` into its folder `report`; return the headline.

    `foreign`: files and folders of results that others published, for a table of their own.

    Raises:
        UserError: there is no such sweep, no point of it can be used, or there are no claims.
        ClaimsError: with all faults of the claims' files.
        ForeignError: with all faults of the foreign files.
    """
    others = read_foreign(foreign)
    wanted = claims.read_claims(known)
    study = read_study(sweep)
    between, with_controls = compare_all(study)
    verdicts = judge_all(study, wanted)
    size = len(between) + len(with_controls)
    sections = [
        Section(key="scores", title="Scores", tables=[scores_table(study)]),
        Section(key="contrasts", title="What can be told apart",
                tables=[contrasts_table(between, size), controls_table(with_controls, size)]),
        Section(key="costs", title="Costs", tables=[costs_table(study)]),
        Section(key="forgetting", title="Forgetting", tables=[forgetting_table(study)]),
        Section(key="claims", title="Claims",
                tables=[claims_table(verdicts), evidence_table(verdicts)]),
        Section(key="origins", title="Where the numbers come from",
                tables=[runs_table(study), points_table(study)]),
    ]  # fmt: skip
    if others:
        of_others = Section(key="foreign", title="Foreign results", tables=[foreign_table(others)])
        sections.insert(-1, of_others)
    headline = sweep_findings.write_headline(study, between, size)
    page = render_markdown({
        "headline": headline,
        "brief": sweep_findings.write_brief(study),
        "points": sweep_findings.write_points(study, between, with_controls, verdicts),
        "warnings": list(sweep_findings.write_warnings(study)),
        "sections": sections,
    })  # fmt: skip
    with artifacts.whole_folder(sweep / FOLDER) as folder:
        (folder / "tables").mkdir()
        (folder / "report.md").write_text(page, encoding="utf-8")
        for table in (table for section in sections for table in section.tables):
            (folder / f"tables/{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
            (folder / f"tables/{table.name}.tex").write_text(to_latex(table), encoding="utf-8")
    return headline
