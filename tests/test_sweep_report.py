"""`bitrank report <sweep>`: the whole page, its tables, and a clear answer to whatever is there."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fake_study
import fake_sweep
import pytest
from fake_project import ROOT
from fake_sweep import NAME, name_point

from bitrank import paths
from bitrank.errors import UserError
from bitrank.sweep_report import write_sweep_report

CLAIMS = ROOT / "conf" / "claims"
TABLES = {
    "scores", "contrasts", "controls", "costs", "forgetting", "claims", "evidence", "runs",
    "points", "serving",
}  # fmt: skip
DATA = {"trade_off", "training_losses", "validation_losses"}
"""Of figures: `dvc plots` draws them."""


def write(folder: Path) -> str:
    return write_sweep_report(folder, CLAIMS)


def page(folder: Path) -> str:
    write(folder)
    return (folder / "report" / "report.md").read_text()


def table(folder: Path, name: str) -> list[dict[str, str]]:
    body = (folder / "report" / "tables" / f"{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(body, newline="")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 bits cost nothing that shows, a rank of 2 does."""
    failed = {name_point("nf4", 32, 1): "out of memory"}
    folder = fake_study.write_study(
        tmp_path_factory.mktemp("sweep"), ranks=(2, 8, 32), statuses=failed,
        nll=lambda precision, rank: (1.9 if rank == 2 else 1.0) + 0.001 * (precision == "nf4"),
    )  # fmt: skip
    write(folder)
    return folder


def test_the_least_memory_among_the_not_separable_is_recommended(folder: Path) -> None:
    headline = (folder / "report" / "report.md").read_text().splitlines()[0]
    assert headline.startswith("# Take nf4-r8: it holds ")
    assert "the least of the 4 configurations" in headline


def test_the_recommendation_comes_with_its_evidence(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text()
    assert "not separable from it: 3 of 5 others" in text
    assert "Not separable is not equal: with 3 seeds and 150 items a difference below" in text
    assert "nf4-r8 against a bag of words: NLL −" in text
    assert "Claims: " in text


def test_every_table_is_there_in_both_forms(folder: Path) -> None:
    names = {file.name for file in (folder / "report" / "tables").iterdir()}
    shown = {f"{name}.{kind}" for name in TABLES for kind in ("csv", "tex")}
    assert names == shown | {f"{name}.csv" for name in DATA}
    for name in TABLES:
        tex = (folder / "report" / "tables" / f"{name}.tex").read_text()
        assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
        body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0]
        assert body.count(r"\\" + "\n") == len(table(folder, name))


def test_every_number_names_its_runs(folder: Path) -> None:
    known = {point["key"] for point in fake_sweep.read_manifest(folder)["points"]}
    for name in ("scores", "contrasts", "controls", "forgetting", "evidence"):
        for row in table(folder, name):
            if row[next(iter(row))] == "most frequent answer":
                continue
            assert set(row["runs"].split()) <= known, (name, row)
            assert row["runs"], (name, row)
    assert {row["run"] for row in table(folder, "points")} == known
    assert all(row["commits"] and row["lock_sha256"] for row in table(folder, "points")
               if row["status"] == "done")  # fmt: skip


def test_the_controls_stand_beside_the_scores(folder: Path) -> None:
    names = [row["configuration"] for row in table(folder, "scores")]
    assert names[:2] == ["fp32-r2", "nf4-r2"]
    assert [name for name in names if "base" in name]
    assert "most frequent answer" in names
    assert {row["from"] for row in table(folder, "controls")} == {
        "original", "quantized", "control",
    }  # fmt: skip


def test_what_failed_is_told_on_the_page(folder: Path) -> None:
    text = (folder / "report" / "report.md").read_text()
    assert f"Left out: {name_point('nf4', 32, 1)}: out of memory" in text
    (row,) = (row for row in table(folder, "points") if row["status"] == "out of memory")
    assert row["reason"] == fake_sweep.REASON


def test_every_claim_has_a_verdict_and_what_was_not_measured_says_why(folder: Path) -> None:
    rows = table(folder, "claims")
    assert len(rows) == len(list(CLAIMS.glob("*.yaml")))
    by_name = {row["claim"]: row for row in rows}
    assert by_name["qlora_quantizes_adapter"]["verdict"] == "refuted"
    assert by_name["lora_faster_than_full"]["verdict"] == "not measured here"
    assert by_name["lora_faster_than_full"]["tested"] == (
        "missing: no configuration with adapter.method = full"
    )
    assert by_name["65b_on_one_gpu"]["verdict"].endswith("(predicted)")
    assert all("missing: None" not in row["tested"] for row in rows)


def test_the_same_records_give_the_same_bytes(folder: Path) -> None:
    def read() -> dict[str, bytes]:
        files = (f for f in (folder / "report").rglob("*") if f.is_file())
        return {f.name: f.read_bytes() for f in files}

    before = read()
    write(folder)
    assert read() == before


def test_one_seed_gives_tables_and_no_recommendation(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, seeds=(0,))
    assert write(folder).startswith("No recommendation: the noise between")
    assert "One seed" in page(folder)
    assert {row["verdict"] for row in table(folder, "contrasts")} == {"one seed: not ranked"}


def test_one_point_is_a_table_of_one(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(8,), precisions=("nf4",), seeds=(0,))
    assert write(folder) == "Nothing to choose: nf4-r8 is the only configuration with a score."
    assert table(folder, "contrasts") == []
    assert len(table(folder, "runs")) == 1


def test_each_hardware_has_a_recommendation_of_its_own(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    for seed in (0, 1, 2):
        for stage in ("train", "measure", "evaluate-adapter"):
            fake_study.set_hardware(folder / name_point("nf4", 8, seed), stage, "Other CPU")
    headline = write(folder)
    assert headline.count("On ") == 2
    assert "On Other CPU (2 threads, 2 cores): Nothing to choose: nf4-r8" in headline


def test_without_memory_nothing_is_recommended(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, precisions=("fp32",), nll=lambda *_: 1.0)
    for seed in (0, 1, 2):
        (folder / name_point("fp32", 2, seed) / "results" / "measure.json").unlink()
    assert write(folder) == "No recommendation: the memory of fp32-r2 was not measured."
    rows = {row["configuration"]: row for row in table(folder, "costs")}
    assert rows["fp32-r2"]["peak_bytes"] == ""


def test_the_records_of_a_bare_sweep_give_a_report_too(tmp_path: Path) -> None:
    """Without item logs, treatments and hardware, as an older bitrank left them."""
    folder = fake_sweep.write_sweep(tmp_path)
    assert write(folder).startswith("No recommendation")
    assert "unknown hardware" in page(folder)


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitrank.cli", "report", *arguments]
    return subprocess.run(command, cwd=root, env=fake_sweep.environment(), capture_output=True,
                          text=True, timeout=120)  # fmt: skip


def test_the_command_tells_the_headline_and_where_the_page_is(tmp_path: Path) -> None:
    fake_study.write_study(tmp_path)
    shutil.copytree(CLAIMS, tmp_path / "conf" / "claims")
    answer = call(tmp_path, NAME)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("Take ")
    assert str(paths.SWEEPS / NAME / "report" / "report.html") in answer.stdout
    (tmp_path / "conf" / "claims" / "few_parameters.yaml").write_text("metric: speed\n")
    (tmp_path / paths.SWEEPS / NAME / "report" / "report.md").write_text("before")
    answer = call(tmp_path, NAME)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: the claims have ")
    assert "Traceback" not in answer.stderr
    assert (tmp_path / paths.SWEEPS / NAME / "report" / "report.md").read_text() == "before"


def test_a_report_needs_no_torch() -> None:
    told = "import sys; import bitrank.sweep_report; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], env=fake_sweep.environment(), timeout=120)
    assert done.returncode == 0


def test_a_sweep_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    shutil.copytree(CLAIMS, tmp_path / "conf" / "claims")
    answer = call(tmp_path, "nothing")
    assert answer.returncode == 1
    manifest = paths.SWEEPS / "nothing" / "sweep.json"
    assert answer.stderr == (
        f"error: {manifest} does not exist: there is no such sweep; of sweeps there are none yet\n"
    )
    kept = tmp_path / paths.PAPERS / "nothing" / "sweep.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert "`bitrank paper nothing --restore`" in call(tmp_path, "nothing").stderr


def test_an_empty_sweep_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, seeds=(0,))
    manifest = fake_sweep.read_manifest(folder)
    fake_sweep.write_manifest(folder, {**manifest, "points": []})
    with pytest.raises(UserError, match="has no points"):
        write(folder)
    assert not (folder / "report").exists()


def test_points_of_other_code_are_told_on_the_page_and_compared_apart(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    for seed in (0, 1, 2):
        fake_study.set_code(folder / name_point("nf4", 8, seed), "f" * 32)
        fake_study.set_code(folder / name_point("nf4", 2, seed), "e" * 32)
    assert "differ in src/bitrank/trainer.py" in page(folder)
    names = {name_point("nf4", 8, seed) for seed in (0, 1, 2)}
    for row in table(folder, "contrasts"):
        compared = names & set(row["runs"].split())
        assert not compared, "no comparison across code"


def test_records_of_an_older_schema_are_told_on_the_page(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path)
    old = name_point("fp32", 2, 0)
    file = paths.record("measure", folder / old / "results")
    body = json.loads(file.read_text())[1]
    file.write_text(json.dumps({"schema_version": 1, **body}))
    assert f"Records of an older schema ({old})" in page(folder)


def test_a_table_without_a_row_is_a_sentence(tmp_path: Path) -> None:
    folder = fake_study.write_study(tmp_path, ranks=(8,), precisions=("nf4",), seeds=(0,))
    text = page(folder)
    assert "Which configurations can be told apart: nothing to show." in text
    assert "### Which configurations can be told apart" not in text
    assert (folder / "report" / "tables" / "contrasts.csv").is_file()
    assert not (folder / "report" / "tables" / "contrasts.tex").exists()
