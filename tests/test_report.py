from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import fake_run
import pytest

from bitrank import figures, paths, records, report, runs
from bitrank.errors import UserError
from bitrank.provenance import flatten

HOSTILE = '<script>alert(1)</script> ![x](http://evil.example/i.png) | `a` "q" \\ & $x^{$'


def hash_folder(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files}  # fmt: skip


def write(root: Path, benchmarks: bool = True) -> Path:
    results, folders = fake_run.write_run(root, benchmarks)
    report.write_report(results, folders, root / "report")
    return root / "report"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("run"))


class Page(HTMLParser):
    """What a browser would load, the ids, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "poster") and value:
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_files_are_there(written: Path) -> None:
    names = set(hash_folder(written))
    drawn = {f"figures/{name}.{kind}" for name in ("scores", "memory", "loss", "layer_errors")
             for kind in ("svg", "png", "pdf")}  # fmt: skip
    pages = {"report.md", "report.html", "tables/scores.csv", "tables/records.csv"}
    assert pages | drawn <= names


def test_another_process_writes_the_same_bytes_without_torch(written: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import test_report; test_report.write(Path("
        f"{str(tmp_path)!r})); sys.exit('torch' in sys.modules)"
    )
    code = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    there = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": code}
    subprocess.run([sys.executable, "-c", program], check=True, env=there, cwd=tmp_path)
    assert hash_folder(tmp_path / "report") == hash_folder(written)


def test_the_page_loads_nothing_and_runs_nothing(written: Path) -> None:
    html = (written / "report.html").read_text()
    page = Page(html)
    assert all(target.startswith("#") for target in page.loads)
    assert "://" not in html
    assert "@import" not in html
    assert not page.tags & {"script", "iframe", "link", "img", "object", "embed"}
    assert re.search(r"Content-Security-Policy.*default-src 'none'", html)


def test_links_of_the_page_hit_and_ids_are_unique(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert len(set(page.ids)) == len(page.ids)
    assert {target[1:] for target in page.loads} <= set(page.ids)


def test_every_recorded_value_stands_in_the_page_and_in_the_csv(written: Path) -> None:
    text = Page((written / "report.html").read_text()).text
    csv = (written / "tables" / "records.csv").read_text()
    for file in (written.parent / "results").glob("*.json"):
        for key, value in flatten(vars(records.read_record(file))):
            if isinstance(value, int | float):
                assert records.canonical_json(value) in text, key
                assert f',"{key}",{value}\n' in csv, key


def test_what_matters_stands_in_markdown_and_html_alike(written: Path) -> None:
    plain = (written / "report.md").read_text()
    page = Page((written / "report.html").read_text()).text
    for shown in (
        "QLoRA (nf4, rank 8) lifts accuracy from", "TF-IDF on the same rows reaches 0.440",
        "0.440 ± 0.035", "2,442,240", "667.6 MiB", "160.7 MiB", "187.3 tokens/s", "1.88 s",
        "257.6 tokens/s", "10.25 tokens/s", "41.73", "4.127", "0.0953", "3.1e-05", "not separable",
        "dequantized from Q4_1", "Example CPU 9000", "2.13.0", "63dc59400000", "unknown",
        *(sha256[:12] for sha256 in fake_run.HASH.values()),
    ):  # fmt: skip
        assert shown in plain, shown
        assert shown in page, shown


def test_figures_of_the_markdown_exist(written: Path) -> None:
    named = re.findall(r"\]\((figures/[^)]+|tables/[^)]+)\)", (written / "report.md").read_text())
    assert len(named) == 6
    assert all((written / name).is_file() for name in named)


def test_markdown_tables_are_whole(written: Path) -> None:
    widths: list[int] = []
    for line in (written / "report.md").read_text().splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("|"):
            widths = []
            continue
        widths.append(cells)
        assert len(set(widths)) == 1, line


def test_no_path_of_this_machine_stands_in_any_file(written: Path) -> None:
    for file in written.rglob("*"):
        if file.is_file():
            assert str(written.parent).encode() not in file.read_bytes()


def test_hostile_text_of_a_record_is_shown_and_does_nothing(tmp_path: Path) -> None:
    results, folders = fake_run.write_run(tmp_path)
    for stage, part, key in (("fetch", "treatment", "name"), ("prepare", "treatment", "prompt"),
                             ("prepare", "treatment", "name")):  # fmt: skip
        record = records.read_record(paths.record(stage, results))
        getattr(record, part)[key] = HOSTILE
        records.write_record(record, paths.record(stage, results))
    layers = records.read_record(paths.record("quantize", results))
    layers.result["layers"][0]["name"] = HOSTILE
    records.write_record(layers, paths.record("quantize", results))
    report.write_report(results, folders, tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text()
    page = Page(html)
    assert not page.tags & {"script", "img"}
    assert all(target.startswith("#") for target in page.loads)
    assert HOSTILE in unescape(html)
    plain = (tmp_path / "report" / "report.md").read_text()
    assert "<script" not in plain.replace("\\<", "")
    assert "![x]" not in plain
    test_markdown_tables_are_whole(tmp_path / "report")


@pytest.mark.parametrize("stage", runs.STAGES)
def test_a_run_without_one_record_is_still_reported(
    written: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = figures.Drawing('<svg viewBox="0 0 1 1"></svg>', b"", b"")
    monkeypatch.setattr(figures, "render", lambda figure: drawn)  # writing files takes longest
    whole = runs.read_run(written.parent / "results", {})
    partial = runs.Run(
        records={name: record for name, record in whole.records.items() if name != stage}, items={}
    )
    content = report.fill_templates(partial, report.build_sections(partial))
    for page in content.values():
        assert f"Missing: no record of {stage}." in page
        assert "missing" in page


def test_one_record_is_enough_and_none_is_a_fault(tmp_path: Path) -> None:
    results, _ = fake_run.write_run(tmp_path)
    for stage in runs.STAGES[1:]:
        paths.record(stage, results).unlink()
    report.write_report(results, {}, tmp_path / "report")
    assert "No verdict" in (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "figures").exists()
    with pytest.raises(UserError, match="no record of a stage"):
        report.write_report(tmp_path / "nowhere", {}, tmp_path / "report")
    assert (tmp_path / "report" / "report.md").is_file(), "a failed report leaves the old one"


def test_benchmarks_may_be_absent(tmp_path: Path) -> None:
    folder = write(tmp_path, benchmarks=False)
    assert "No benchmark was evaluated" in (folder / "report.md").read_text()
    assert not (folder / "tables" / "forgetting.csv").exists()


def test_nothing_of_an_older_report_is_left(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.csv").write_text("old")
    assert not (write(tmp_path) / "old.csv").exists()
