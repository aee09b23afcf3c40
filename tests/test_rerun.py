"""Points of a toy sweep computed again at its commit, and what the comparison says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE, STDOUT, CompletedProcess, Popen

import pytest
from toy_project import Toy

from bitrank import paths
from bitrank.errors import UserError
from bitrank.rerun import SCRATCH, choose

RERUN = [sys.executable, "-m", "bitrank.cli", "verify"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    made = Toy(tmp_path_factory.mktemp("toy"))
    made.commit()
    made.sweep("adapter.rank=2,4")
    return made


def sweep_of(toy: Toy) -> Path:
    (folder,) = (path for path in (toy.folder / paths.SWEEPS).iterdir() if path.is_dir())
    return folder


def rerun(
    toy: Toy, *keys: str, sweep: Path | None = None, faults: str = ""
) -> CompletedProcess[str]:
    name = sweep_of(toy).name if sweep is None else str(sweep)
    return toy.run(*RERUN, name, *keys, "--rerun", faults=faults)


def key_of(toy: Toy, rank: int) -> str:
    return next(sweep_of(toy).glob(f"nf4-r{rank}-*")).name


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(f), f.lstat().st_mtime_ns) for f in folder.rglob("*") if not f.is_dir()}


def test_every_stage_runs_again_and_the_same_comes_out_whatever_the_code_is_now(toy: Toy) -> None:
    before, ran = listing(sweep_of(toy)), len(toy.ran())
    cache = listing(toy.folder / ".dvc/cache")
    script = toy.folder / "stages" / "run.py"
    text = script.read_text()
    script.write_text(text.replace("text = json.dumps([name,", 'text = json.dumps(["new", name,'))
    try:
        answer = rerun(toy)
    finally:
        script.write_text(text)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.count("bit-identical: 0 of") == 2
    stages = toy.stages()[ran:]
    assert stages.count("train") == 2, "nothing is restored"
    assert stages.count("fetch") == 1, "what points share is computed once"
    assert listing(sweep_of(toy)) == before, "the sweep is only read"
    assert listing(toy.folder / ".dvc/cache") == cache, "the project's cache is not touched"
    assert not (toy.folder / SCRATCH / sweep_of(toy).name).exists()


def test_a_tampered_record_comes_out_different_with_both_values(toy: Toy, tmp_path: Path) -> None:
    sweep = Path(shutil.copytree(sweep_of(toy), tmp_path / "copy"))
    key = key_of(toy, 4)
    file = sweep / key / "results" / "train.json"
    body = json.loads(file.read_text())
    true = body["result"]["adapter_hash"]
    body["result"]["adapter_hash"] = "f" * 64
    file.write_text(json.dumps(body))
    answer = rerun(toy, key, sweep=sweep)
    assert answer.returncode == 1
    assert f"{key}: different: 1 of 1 values differ" in answer.stdout
    assert f"result.adapter_hash: ffffffffffff was kept, {true[:12]} came out" in answer.stdout
    assert key_of(toy, 2) not in answer.stdout, "only what was asked for runs"
    assert "1 of 1 points did not come out" in answer.stdout


def test_a_point_that_fails_says_why(toy: Toy) -> None:
    answer = rerun(toy, key_of(toy, 2), faults="train:*:error")
    assert answer.returncode == 1
    assert f"{key_of(toy, 2)}: failed: stage train: `toy.key` is wrong" in answer.stdout
    assert not (toy.folder / SCRATCH / sweep_of(toy).name).exists()


def test_an_interrupted_rerun_leaves_nothing(toy: Toy) -> None:
    before, ran = listing(sweep_of(toy)), toy.stages().count("train")
    running = Popen(
        [*RERUN, sweep_of(toy).name, key_of(toy, 2), "--rerun"], cwd=toy.folder, stdout=PIPE,
        stderr=STDOUT, text=True, start_new_session=True, env=toy.environment("train:*:100"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    until = time.monotonic() + 200
    while toy.stages().count("train") == ran and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGINT)
    printed, _ = running.communicate(timeout=100)
    assert running.returncode == 130, printed
    assert "Traceback" not in printed
    assert not (toy.folder / SCRATCH / sweep_of(toy).name).exists()
    assert listing(sweep_of(toy)) == before


def test_a_key_that_is_not_there_names_those_that_are(toy: Toy) -> None:
    with pytest.raises(UserError, match="nf4-r9 is not a point of this sweep") as caught:
        choose(sweep_of(toy), ["nf4-r9"])
    assert key_of(toy, 2) in str(caught.value)
    assert choose(sweep_of(toy), []) == [key_of(toy, 2), key_of(toy, 4)]
    alone = toy.run(*RERUN, sweep_of(toy).name, key_of(toy, 2))
    assert alone.returncode == 1
    assert "add --rerun" in alone.stdout
