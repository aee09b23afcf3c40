"""The figures of a sweep: there where the evidence is, absent with a reason where it is not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import fake_paper
import fake_study
import fake_sweep
import pytest
from fake_project import ROOT
from fake_sweep import name_point
from test_report import Page

from bitrank import charts, sweep_curves, sweep_figures, sweep_maps
from bitrank.contrasts import compare_all
from bitrank.figures import Drawing
from bitrank.study import read_study
from bitrank.sweep_places import Drawn
from bitrank.sweep_report import write_sweep_report

FIGURES = {
    "acc_memory", "nll_memory", "heat_acc", "heat_nll", "heat_memory", "heat_speed",
    "train_speed", "decode_speed", "losses", "kept_gain", "forgetting_wiki",
}  # fmt: skip
LOST = {name_point("int8", 2, seed): "out of memory" for seed in (0, 1)}


def write(root: Path) -> Path:
    folder = fake_paper.write_paper(root, ranks=(2, 8), seeds=(0, 1), statuses=LOST, count=40)
    write_sweep_report(folder, ROOT / "conf" / "claims")
    return folder / "report"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("paper"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing and writing take longest."""
    drawn = Drawing("<svg></svg>", b"", b"")
    monkeypatch.setattr(charts, "render", lambda figure: drawn)


def draw_all(folder: Path) -> Drawn:
    study = read_study(folder)
    found = [sweep_figures.trade_off(study), sweep_maps.heat_maps(study), sweep_maps.rates(study),
             sweep_curves.losses(study), sweep_curves.kept_gains(study),
             sweep_curves.forgetting(study, compare_all(study)[1])]  # fmt: skip
    return Drawn(figures=[figure for drawn in found for figure in drawn.figures],
                 absent=[why for drawn in found for why in drawn.absent])  # fmt: skip


def hashes(report: Path) -> dict[str, str]:
    files = (file for file in report.rglob("*") if file.is_file())
    return {file.relative_to(report).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files}  # fmt: skip


def test_every_figure_is_there_in_three_kinds(report: Path) -> None:
    names = {file.name for file in (report / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "pdf")}
    for file in (report / "figures").glob("*.svg"):
        ElementTree.parse(file)


def test_another_process_at_another_time_writes_the_same_bytes(
    report: Path, tmp_path: Path
) -> None:
    program = f"import pathlib, test_sweep_figures as t; t.write(pathlib.Path({str(tmp_path)!r}))"
    code = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    there = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": code, "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", program], check=True, env=there, cwd=tmp_path)
    (again,) = tmp_path.glob("data/sweeps/*/report")
    assert hashes(again) == hashes(report)


def test_no_figure_carries_a_date_or_a_program(report: Path) -> None:
    for file in (report / "figures").iterdir():
        body = file.read_bytes()
        for mark in (b"Creat", b"Producer", b"Software", b"dc:date"):
            assert mark not in body, file.name


def test_fonts_of_a_pdf_are_inside_and_no_bitmaps(report: Path) -> None:
    for file in (report / "figures").glob("*.pdf"):
        body = file.read_bytes()
        assert b"/FontFile2" in body
        assert b"/Type3" not in body
        assert b"/Subtype /Image" not in body


def test_the_page_needs_nothing_beside_it_and_its_links_hit(report: Path) -> None:
    html = (report / "report.html").read_text()
    page = Page(html)
    assert all(target.startswith("#") for target in page.loads)
    assert {target[1:] for target in page.loads} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert "://" not in html
    assert not page.tags & {"script", "iframe", "link", "img", "object", "embed"}
    keys = [point["key"] for point in fake_sweep.read_manifest(report.parent)["points"]]
    assert {f"run-{key}" for key in keys} <= set(page.ids)
    for key in LOST:
        assert f"{key}: out of memory" in page.text


def test_every_caption_names_the_hardware_and_stands_in_both_pages(report: Path) -> None:
    plain, page = ((report / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert plain.count("Hardware: Example CPU (2 threads, 2 cores).") == len(FIGURES)
    assert page.count("Hardware: Example CPU (2 threads, 2 cores).") == len(FIGURES)
    assert "out of memory" in (report / "figures" / "heat_nll.svg").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_front_has_what_no_other_beats_in_both() -> None:
    places = [(1.0, 3.0), (2.0, 2.0), (2.0, 1.5), (3.0, 2.5), (4.0, 1.0), (5.0, 1.0)]
    assert sweep_figures._front(places, less_is_better=True) == [(1.0, 3.0), (2.0, 1.5), (4.0, 1.0)]
    assert sweep_figures._front(places, less_is_better=False) == [(1.0, 3.0)]


@pytest.mark.usefixtures("undrawn")
def test_what_has_no_evidence_is_left_out_with_its_reason(tmp_path: Path) -> None:
    folder = fake_sweep.write_sweep(tmp_path, ranks=(8,), precisions=("nf4",), seeds=(0,))
    for stage in ("measure", "train", "fidelity"):
        (folder / name_point("nf4", 8, 0) / "results" / f"{stage}.json").unlink()
    drawn = draw_all(folder)
    assert drawn.figures == []
    told = " ".join(drawn.absent)
    for why in ("it takes two configurations of which both are known, and there is none",
                "No heat maps on", "No figure of training speed", "No figure of decoding speed",
                "No loss curves", "No figure of merge fidelity", "No figure of forgetting on wiki",
                ):  # fmt: skip
        assert why in told


@pytest.mark.usefixtures("undrawn")
def test_each_hardware_has_figures_of_its_own(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, seeds=(0, 1), count=40)
    for rank in (2, 8):
        for seed in (0, 1):
            for stage in ("train", "measure", "evaluate-adapter"):
                fake_study.set_hardware(folder / name_point("nf4", rank, seed), stage, "Other CPU")
    figures = {figure.name: figure for figure in draw_all(folder).figures}
    first, second = figures["nll_memory_1"], figures["nll_memory_2"]
    assert "Hardware: Example CPU" in first.caption
    assert "Hardware: Other CPU" in second.caption
    assert "nf4" not in first.alt
    assert "fp32" not in second.alt


def test_tiles_are_lighter_for_less_and_their_text_can_be_read() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    shades = [charts.shade(step / 20) for step in range(21)]
    lights = [light(back) for back, _ in shades]
    assert lights == sorted(lights, reverse=True)
    for back, ink in shades:
        high, low = sorted((light(back), light(ink)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (back, ink)
