"""The report of a sweep: `report.md` and `report.html`, its tables as CSV and LaTeX, its figures.

The same records give the same bytes. It is filled into the page of a single run's report, from the
same kinds of sections and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bitrank import (
    artifacts,
    claims,
    pages,
    sweep_curves,
    sweep_figures,
    sweep_findings,
    sweep_maps,
)
from bitrank.claim_tables import claims_table, evidence_table
from bitrank.contrasts import Contrast, compare_all
from bitrank.foreign import foreign_table, read_foreign
from bitrank.latex import to_latex
from bitrank.pages import Section
from bitrank.study import Study, read_study
from bitrank.sweep_origins import points_table, runs_table
from bitrank.sweep_projection import REPORT
from bitrank.sweep_serving import serving_table
from bitrank.sweep_tables import (
    contrasts_table,
    controls_table,
    costs_table,
    forgetting_table,
    scores_table,
)
from bitrank.verdicts import Verdict, judge_all


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
    sections = build_sections(study, between, with_controls, verdicts)
    if others:
        of_others = Section(key="foreign", title="Foreign results", tables=[foreign_table(others)])
        sections.insert(-1, of_others)
    headline = sweep_findings.write_headline(study, between, size)
    written = pages.fill({
        "method": "Sweep",
        "headline": headline,
        "brief": sweep_findings.write_brief(study),
        "points": sweep_findings.write_points(study, between, with_controls, verdicts),
        "warnings": list(sweep_findings.write_warnings(study)),
        "sections": sections,
    })  # fmt: skip
    tables = [table for section in sections for table in section.tables]
    with artifacts.whole_folder(sweep / REPORT) as folder:
        pages.write_files(folder, pages.files_of(sections))
        pages.write_files(folder, {f"tables/{table.name}.tex": to_latex(table) for table in tables})
        pages.write_files(folder, written)
    return headline


def build_sections(
    study: Study,
    between: Sequence[Contrast],
    with_controls: Sequence[Contrast],
    verdicts: Sequence[Verdict],
) -> list[Section]:
    size = len(between) + len(with_controls)
    trade_off, maps = sweep_figures.trade_off(study), sweep_maps.heat_maps(study)
    rates, losses = sweep_maps.rates(study), sweep_curves.losses(study)
    kept, forgotten = sweep_curves.kept_gains(study), sweep_curves.forgetting(study, with_controls)
    curves = [sweep_curves.losses_table(study, key) for key in ("losses", "validation")]
    sections = [
        Section(key="scores", title="Scores", figures=trade_off.figures, text=trade_off.absent,
                tables=[scores_table(study)], data=[sweep_figures.trade_off_table(study)]),
        Section(key="contrasts", title="What can be told apart",
                tables=[contrasts_table(between, size), controls_table(with_controls, size)]),
        Section(key="maps", title="Rank by precision", figures=maps.figures, text=maps.absent),
        Section(key="costs", title="Costs", figures=rates.figures, text=rates.absent,
                tables=[costs_table(study)]),
        Section(key="training", title="Training", figures=losses.figures, text=losses.absent,
                data=curves),
        Section(key="serving", title="What is served", figures=kept.figures, text=kept.absent,
                tables=[serving_table(study)]),
        Section(key="forgetting", title="Forgetting", figures=forgotten.figures,
                text=forgotten.absent, tables=[forgetting_table(study)]),
        Section(key="claims", title="Claims",
                tables=[claims_table(verdicts), evidence_table(verdicts)]),
        Section(key="origins", title="Where the numbers come from",
                tables=[points_table(study), runs_table(study)]),
    ]  # fmt: skip
    return [_without_bare_tables(section) for section in sections]


def _without_bare_tables(section: Section) -> Section:
    """A heading over no row tells a reader nothing: a sentence does; the CSV stays."""
    bare = [table for table in section.tables if not table.rows]
    return replace(
        section,
        tables=[table for table in section.tables if table.rows],
        data=[*section.data, *bare],
        text=[*section.text, *(f"{table.title}: nothing to show." for table in bare)],
    )
