"""What is committed of a sweep is enough: its report comes from it alone, to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_study
import pytest
from fake_project import ROOT
from fake_sweep import NAME, name_point

from bitrank import papers
from bitrank.errors import UserError

CLAIMS = ROOT / "conf" / "claims"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below a folder from which the sweep itself is gone."""
    root = tmp_path_factory.mktemp("project")
    sweep = fake_study.write_study(root, statuses={name_point("nf4", 8, 2): "failed"}, count=30)
    paper = papers.keep(sweep, root / "papers", CLAIMS)
    shutil.move(sweep, root / "gone")
    return paper


@pytest.fixture
def paper(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "papers" / kept.name))


def test_the_report_is_rebuilt_from_what_is_kept_to_the_byte(paper: Path) -> None:
    assert papers.find_differences(paper, CLAIMS) == []
    before = papers._read_all(paper)
    papers.rebuild(paper, CLAIMS)
    assert papers._read_all(paper) == before
    assert "report/report.html" in before
    assert "report/figures/nll_memory.pdf" in before


def test_any_changed_number_and_any_edited_page_are_named(paper: Path) -> None:
    page = paper / "report" / "report.md"
    page.write_text(page.read_text().replace("Take", "Do take"))
    (paper / "report" / "more.txt").write_text("by hand")
    assert papers.find_differences(paper, CLAIMS) == ["more.txt", "report.md"]
    point = paper / name_point("nf4", 2, 0)
    fake_study.change(point, "measure", "result", {"train_memory": {"peak_bytes": 10**10}})
    found = papers.find_differences(paper, CLAIMS)
    assert {"tables/costs.csv", "figures/nll_memory.svg", "report.html"} <= set(found)


def test_a_changed_item_log_is_found_by_its_hash(paper: Path, tmp_path: Path) -> None:
    whole = papers.restore(paper, tmp_path / "sweeps")
    log = whole / name_point("nf4", 2, 0) / "items" / "adapter" / "task.jsonl"
    log.write_text(log.read_text().replace('"correct": true', '"correct": false', 1))
    with pytest.raises(UserError, match="not the item log that"):
        papers.keep(whole, tmp_path / "others", CLAIMS)
    assert not (tmp_path / "others" / NAME).exists()


def test_a_restored_sweep_is_kept_as_the_same_bytes(paper: Path, tmp_path: Path) -> None:
    whole = papers.restore(paper, tmp_path / "sweeps")
    again = papers.keep(whole, tmp_path / "again", CLAIMS)
    assert papers._read_all(again) == papers._read_all(paper)
    with pytest.raises(UserError, match="exists: remove it first"):
        papers.restore(paper, tmp_path / "sweeps")


def test_what_is_not_there_or_damaged_is_told(paper: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"nothing; there are: {NAME}"):
        papers.find(["nothing"], paper.parent)
    assert papers.find([], tmp_path / "empty") == []
    (paper / papers.ITEMS).write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"items\.tar\.xz cannot be read .* restore it from git"):
        papers.find_differences(paper, CLAIMS)
