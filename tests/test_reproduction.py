"""What a sweep runs in place of `dvc repro`: the same lock, the same cache, the same errors."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from toy_project import Toy

OURS = [sys.executable, "-m", "bitrank.reproduction", "report"]
DVCS = [sys.executable, "-m", "dvc", "repro", "report"]


def make(folder: Path, *overrides: str) -> Toy:
    toy = Toy(folder)
    toy.run("bitrank", "params", "experiment=smoke", *overrides)
    return toy


def run_cache(toy: Toy) -> set[str]:
    return {file.name for file in (toy.folder / ".dvc/cache/runs").glob("*/*/*")}


def point(toy: Toy, rank: int) -> Path:
    (kept,) = (toy.folder / "data" / "sweeps").glob(f"*/nf4-r{rank}-*")
    return kept


@pytest.mark.parametrize("faults", ["", "baseline-quantized:*:error", "train:*:kill"])
def test_the_lock_and_the_cache_are_those_of_dvc_repro(tmp_path: Path, faults: str) -> None:
    """Also where a stage fails: what was finished before is in the lock."""
    ours, dvcs = make(tmp_path / "ours"), make(tmp_path / "dvcs")
    told, expected = ours.run(*OURS, faults=faults), dvcs.run(*DVCS, faults=faults)
    assert told.returncode == expected.returncode
    lock = (ours.folder / "dvc.lock").read_text()
    assert lock == (dvcs.folder / "dvc.lock").read_text()
    assert ("train" in yaml.safe_load(lock)["stages"]) == (not faults)
    assert run_cache(ours) == run_cache(dvcs) != set()
    ended = re.compile("^ERROR: .*", re.M)
    assert ended.findall(told.stdout) == ended.findall(expected.stdout)
    assert bool(ended.search(told.stdout)) == bool(faults)


def test_a_sweep_takes_from_the_lock_of_another_point_what_holds_for_this_one(
    tmp_path: Path,
) -> None:
    toy, dvcs = Toy(tmp_path / "toy"), make(tmp_path / "dvcs", "adapter.rank=4")
    assert toy.sweep("adapter.rank=2,3").returncode == 0
    shutil.rmtree(toy.folder / ".dvc" / "cache" / "runs")  # no other way to find what was done
    assert toy.sweep("adapter.rank=2,3,4").returncode == 0
    dvcs.run(*DVCS)
    kept = point(toy, 4)
    assert (kept / "dvc.lock").read_text() == (dvcs.folder / "dvc.lock").read_text()
    assert (kept / "dvc.lock").read_text() != (point(toy, 2) / "dvc.lock").read_text()
    outcome = json.loads((kept / "outcome.json").read_text())
    assert set(outcome["stages_ran"]) == {"train", "measure", "report"}
    assert "prepare" in outcome["stages_restored"]
    assert toy.stages().count("prepare") == 1


@pytest.mark.parametrize("harm", ["object", "cache", "lock"])
def test_what_is_missing_from_the_cache_is_computed_again(tmp_path: Path, harm: str) -> None:
    toy, dvcs = Toy(tmp_path / "toy"), make(tmp_path / "dvcs", "adapter.rank=4")
    assert toy.sweep("adapter.rank=2,3").returncode == 0
    lock, cache = point(toy, 2) / "dvc.lock", toy.folder / ".dvc" / "cache"
    if harm == "object":
        prepared = yaml.safe_load(lock.read_text())["stages"]["prepare"]["outs"][0]["md5"]
        (cache / "files" / "md5" / prepared[:2] / prepared[2:]).unlink()
    elif harm == "cache":
        shutil.rmtree(cache)
    else:
        lock.write_text("stages: [")  # by hand: it is not the lock that the point ended with
    answer = toy.sweep("adapter.rank=2,3,4")
    assert answer.returncode == 0, answer.stdout
    dvcs.run(*DVCS)
    assert (point(toy, 4) / "dvc.lock").read_text() == (dvcs.folder / "dvc.lock").read_text()
    again = {"object": 2, "cache": 2, "lock": 1}[harm]
    assert toy.stages().count("prepare") == again
