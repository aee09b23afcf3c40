"""`bitrank plan` as a user types it; and each command that the page about choosing names."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.testing import CliRunner, Result

from bitrank import cli, plan_checks, plan_command, plan_tables
from bitrank.errors import UserError

PAGE = ROOT / "docs" / "choosing.md"
TINY = ("experiment=smoke", "precision=fp32,nf4", "train.gradient_checkpointing=true")


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *arguments])


def told(*arguments: str) -> dict[str, Any]:
    answer = ask(*arguments, "--json")
    assert answer.exit_code == 0, answer.exception
    body: dict[str, Any] = json.loads(answer.stdout)
    return body


def test_a_plan_of_a_grid_is_a_row_for_each() -> None:
    answer = ask(*TINY, "--memory", "4GiB", "--price", "2")
    assert answer.exit_code == 0, answer.exception
    lines = answer.stdout.splitlines()
    (fp32,) = [line for line in lines if line.startswith("LoRA fp32 r8 ckpt  ")]
    (nf4,) = [line for line in lines if line.startswith("QLoRA nf4 r8 ckpt  ")]
    assert "yes" in fp32.split()
    assert "yes" in nf4.split()
    for word in ("assumed", "2 of 2 fit", "merging needs", "not measured on a GPU"):
        assert word in answer.stdout, word
    table = [line for line in lines if line.startswith(("what", "LoRA", "QLoRA"))]
    assert max(map(len, table)) <= 100


def test_a_terminal_of_100_columns_holds_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    row = ["QLoRA nf4 r256 ckpt 16x2048", "128.48", "770.91", "999.99", "1,899", "perhaps",
           "131,072", "65,536", "0.0123", "0.0123"]  # fmt: skip
    plan_command._show(["what (GiB)", *plan_tables.HEADER[1:]], [row])
    plan_command._say("a sentence " * 30)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(cell in line for line in lines) for cell in row)


def test_json_has_every_part_and_every_definition() -> None:
    body = told(*TINY, "--memory", "4GiB", "--mfu", "0.3")
    assert body["architecture"]["settings"]["model_type"] == "llama"
    assert body["speed"] is None, "nothing is known of this GPU's ceiling"
    for plan in body["plans"]:
        train = plan["phases"]["train"]
        assert train["peak_bytes"] == sum(v for k, v in train.items() if k != "peak_bytes")
        assert plan["needed_bytes"] == plan["tensor_bytes"] + plan["assumed_bytes"]
        assert plan["fits"] == "yes"
    fp32, nf4 = body["plans"]
    assert nf4["phases"]["load"]["peak_bytes"] < fp32["phases"]["load"]["peak_bytes"]
    assert {"tensors", "assumed", "fits", "time", "ceiling"} <= set(body["definitions"])


def test_what_is_impossible_stands_beside_what_is_planned() -> None:
    body = told("experiment=smoke", "precision=fp32,nf4", "adapter=full", "--device", "T4",
                "--price", "0.5")  # fmt: skip
    assert [plan["label"].split()[:2] for plan in body["plans"]] == [["full", "fp32"]]
    (missing,) = body["not_predicted"]
    assert "full trains every weight" in missing["reason"]
    assert body["speed"]["mfu"] == 0.4
    assert "assumed" in body["speed"]["source"]
    assert body["price_per_hour"] == 0.5


def test_one_plan_is_shown_by_phase() -> None:
    answer = ask("experiment=smoke", "adapter.rank=4", "precision=nf4", "--device", "here",
                 "train.gradient_checkpointing=false", "--targets", "3")  # fmt: skip
    assert answer.exit_code == 0, answer.exception
    for phase in ("load", "train", "evaluate", "merge"):
        assert re.search(rf"^{phase} ", answer.stdout, re.M), phase
    assert "the last 3 tokens" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "GTX 9"], "no GPU 'GTX 9' is known; known are T4"),
        (["--memory", "much"], "'much' is no size of memory"),
        (["model=hub", "model.source.repo=some/model", "precision=nf4", "adapter=lora"],
         "nothing is known of some/model"),
        (["precision=nf5"], "nf5"),
        (["adapter=full", "precision=nf4"], "full trains every weight"),
        (["--config", "none.json"], "none.json does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_with_the_cure(arguments: list[str], reason: str) -> None:
    answer = ask(*arguments)
    assert isinstance(answer.exception, UserError)
    assert reason in str(answer.exception)


@pytest.fixture(scope="module")
def checked() -> dict[str, Any]:
    """All that the project measured, predicted anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return told("--check")


def test_predictions_are_what_was_measured_here(checked: dict[str, Any]) -> None:
    compared = checked["measured"]
    assert sum("memory_curve" in check["where"] for check in compared) >= 12
    assert max(abs(check["error"]) for check in compared) < 1e-3, compared
    checks = [
        plan_checks.Check(**{name: value for name, value in check.items() if name != "error"})
        for check in compared
    ]
    header, rows = plan_tables.check_table(checks)
    assert all(len(row) == len(header) for row in rows)
    assert f"{len(compared)} measured points" in next(plan_tables.check_sentences(checks))


def test_a_record_without_its_configuration_is_named(tmp_path: Path) -> None:
    source = ROOT / "data" / "results" / "measure.json"
    target = tmp_path / "data" / "results" / "measure.json"
    target.parent.mkdir(parents=True)
    target.write_text(source.read_text())
    ((where, job),) = plan_checks.list_jobs(tmp_path)
    (skipped,) = job()
    assert where == skipped.where == "data/results/measure.json"
    assert "does not tell its configuration" in skipped.reason  # type: ignore[union-attr]


def test_what_others_published_is_compared(checked: dict[str, Any]) -> None:
    assert checked["published"]
    for one in checked["published"]:
        assert one["tensor_bytes"] < one["needed_bytes"]
        assert abs(one["off"]) < 0.2, one
        assert one["differs"]


def test_the_page_tells_what_the_check_finds(checked: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for one in checked["published"]:
        shown = [f"{one[f'{name}_bytes'] / 1e9:.1f}" for name in ("published", "tensor", "needed")]
        assert f"| {' | '.join(shown)} |" in page, one["name"]


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line.partition("#")[0] for line in joined.splitlines() if line.startswith("bitrank")]


@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_page_runs(command: str) -> None:
    program, verb, *arguments = shlex.split(command)
    assert (program, verb) == ("bitrank", "plan")
    answer = ask(*arguments)
    assert answer.exit_code == 0, answer.exception
    assert answer.stdout.strip()
