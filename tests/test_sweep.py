"""The sweep driver on a toy pipeline: what is computed, how often, and what failures leave."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from toy_project import Toy

from bitrank.store import DATABASE, POINT

GRID = ("adapter.rank=2,4", "seed=0,1", "precision=fp32,nf4")
ONCE = {"fetch": 1, "prepare": 1, "baseline-base": 1}
OF_EIGHT = {**ONCE, "quantize": 2, "baseline-quantized": 2, "measure": 4, "train": 8, "report": 8}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def manifest(toy: Toy) -> dict[str, Any]:
    (file,) = (toy.folder / "data" / "sweeps").glob("*/sweep.json")
    body: dict[str, Any] = json.loads(file.read_text())
    return body


def statuses(toy: Toy) -> dict[str, str]:
    """By the key without the digits of the hash."""
    return {re.sub(r"-\w{6}$", "", p["key"]): p["status"] for p in manifest(toy)["points"]}


def results(toy: Toy) -> dict[str, str]:
    """The adapter's hash of each point that was kept."""
    files = (toy.folder / "data" / "sweeps").glob("*/*/results/train.json")
    return {f.parts[-3]: json.loads(f.read_text())["result"]["adapter_hash"] for f in files}


def test_what_points_share_is_computed_once_and_what_is_done_is_not_run_again(toy: Toy) -> None:
    answer = toy.sweep(*GRID)
    assert answer.returncode == 0, answer.stdout
    assert Counter(toy.stages()) == OF_EIGHT
    assert set(statuses(toy).values()) == {"done"}
    assert len(set(results(toy).values())) == 8
    for point in manifest(toy)["points"]:
        kept = toy.folder / "data" / "sweeps" / manifest(toy)["sweep"] / point["key"]
        assert {p.name for p in kept.iterdir()} >= {"params.yaml", "dvc.lock", "results", "report"}
    assert not list((toy.folder / ".dvc/tmp/sweeps").glob("*/nf4*/")), "workspaces are dropped"
    assert sorted(published(toy)) == sorted(point["key"] for point in manifest(toy)["points"])
    again = toy.sweep(*GRID)
    assert again.returncode == 0
    assert "8 done before, 0 to run" in again.stdout
    assert Counter(toy.stages()) == OF_EIGHT


def test_more_values_extend_a_sweep_and_changed_code_begins_another(toy: Toy) -> None:
    toy.sweep("adapter.rank=2,3")
    toy.sweep("adapter.rank=2,3,4")
    assert statuses(toy) == {f"nf4-r{rank}-s0": "done" for rank in (2, 3, 4)}
    assert toy.stages().count("train") == 3
    with (toy.folder / "src" / "bitrank" / "figures.py").open("a") as code:
        code.write("# edited\n")
    assert toy.sweep("adapter.rank=2,3,4").returncode == 0
    assert len(list((toy.folder / "data" / "sweeps").glob("*/sweep.json"))) == 2
    assert toy.stages().count("train") == 3, "what the edit cannot change is restored"


def test_points_that_cannot_be_composed_are_all_named_before_any_runs(toy: Toy) -> None:
    answer = toy.sweep("adapter.rank=0,2", "precision=fp32,fp99")
    assert answer.returncode == 1
    assert "3 of 4 points cannot run, so none is started" in answer.stdout
    assert "adapter.rank=0 precision=fp32: the configuration has 1 fault" in answer.stdout
    assert "Could not find 'precision/fp99'" in answer.stdout
    assert "Traceback" not in answer.stdout
    assert toy.ran() == []
    assert not (toy.folder / "data" / "sweeps").exists()


FAULTS = "train:nf4-r2-s0:error train:nf4-r4-s0:kill train:nf4-r8-s0:memory"


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_point_that_fails_is_recorded_and_the_others_go_on(
    toy: Toy, launcher: tuple[str, ...]
) -> None:
    answer = toy.sweep("adapter.rank=2,4,8,16", *launcher, faults=FAULTS)
    assert answer.returncode == 1
    assert "1 of 4 points are done" in answer.stdout
    assert "Traceback" not in answer.stdout
    found = {p["key"].rpartition("-")[0]: p for p in manifest(toy)["points"]}
    assert found["nf4-r2-s0"]["status"] == "failed"
    assert found["nf4-r2-s0"]["reason"] == "stage train: `toy.key` is wrong: set it right"
    assert found["nf4-r4-s0"]["status"] == "failed"
    assert "stage train: killed (signal 9)" in found["nf4-r4-s0"]["reason"]
    assert found["nf4-r8-s0"]["status"] == "out of memory"
    assert found["nf4-r16-s0"]["status"] == "done"
    before = len(toy.ran())
    mended = toy.sweep("adapter.rank=2,4,8,16", *launcher)
    assert mended.returncode == 0, mended.stdout
    assert set(statuses(toy).values()) == {"done"}
    ran = Counter(toy.stages()[before:])
    assert ran == {"train": 3, "measure": 3, "report": 3}, "only what was missing"


def test_parallel_points_do_not_compute_the_same_thing_at_the_same_time(toy: Toy) -> None:
    answer = toy.sweep(*GRID, "hydra/launcher=joblib", "hydra.launcher.n_jobs=4",
                       faults="fetch:*:0.5 quantize:*:0.5 measure:*:0.5")  # fmt: skip
    assert answer.returncode == 0, answer.stdout
    assert Counter(toy.stages()) == OF_EIGHT


def test_one_cache_for_the_sweep_and_dvc_repro(toy: Toy) -> None:
    toy.sweep("adapter.rank=4")
    ran = len(toy.ran())
    assert toy.run("bitrank", "params", "experiment=smoke", "adapter.rank=4").returncode == 0
    repro = toy.run("dvc", "repro")
    assert repro.returncode == 0, repro.stdout
    assert len(toy.ran()) == ran, "all came from what the sweep computed"
    toy.run("bitrank", "params", "experiment=smoke", "adapter.rank=8")
    toy.run("dvc", "repro")
    ran = len(toy.ran())
    assert toy.sweep("adapter.rank=8").returncode == 0
    assert len(toy.ran()) == ran, "and the other way round"


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(toy: Toy) -> None:
    running = toy.start("adapter.rank=2,4", faults="train:nf4-r4-s0:60")
    _wait_for(toy, "train nf4-r4-s0")
    os.killpg(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 130, printed
    assert "Traceback" not in printed
    assert statuses(toy) == {"nf4-r2-s0": "done", "nf4-r4-s0": "interrupted"}
    assert _left_running(toy) == []
    assert toy.sweep("adapter.rank=2,4").returncode == 0
    assert toy.stages().count("train") == 3


def test_a_killed_driver_leaves_a_failed_point_and_no_pipeline_in_the_way(toy: Toy) -> None:
    running = toy.start("adapter.rank=2", faults="train:*:60")
    _wait_for(toy, "train nf4-r2-s0")
    running.kill()  # the driver alone: its pipeline goes on
    running.communicate()
    assert _left_running(toy)
    answer = toy.sweep("adapter.rank=2")
    assert answer.returncode == 0, answer.stdout
    assert statuses(toy) == {"nf4-r2-s0": "done"}
    assert _left_running(toy) == []


@pytest.mark.slow
def test_killed_at_random_moments_a_sweep_ends_as_an_undisturbed_one(
    toy: Toy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed = Toy(tmp_path_factory.mktemp("undisturbed"))
    assert undisturbed.sweep(*GRID).returncode == 0
    moments = random.Random(0)
    for _ in range(20):
        running = toy.start(*GRID, faults="train:*:0.3")
        time.sleep(moments.uniform(1, 8))
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    answer = toy.sweep(*GRID)
    assert answer.returncode == 0, answer.stdout
    assert results(toy) == results(undisturbed)
    keys = [point["key"] for point in manifest(toy)["points"]]
    assert sorted(published(toy)) == sorted(keys), "MLflow holds each point once"


def published(toy: Toy) -> list[str]:
    """The point that each run in MLflow shows; the sweep's own run left out."""
    file = toy.folder / "data" / "mlflow" / DATABASE
    query = """SELECT tags.value FROM tags JOIN runs USING (run_uuid)
        WHERE tags.key = ? AND runs.lifecycle_stage = 'active'"""
    with closing(sqlite3.connect(file)) as connection:
        return [row[0] for row in connection.execute(query, (POINT,))]


def _wait_for(toy: Toy, line: str) -> None:
    deadline = time.monotonic() + 120
    while line not in toy.ran():
        assert time.monotonic() < deadline, toy.ran()
        time.sleep(0.1)
    time.sleep(0.3)


def _left_running(toy: Toy) -> list[str]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(toy.folder / ".dvc")):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
