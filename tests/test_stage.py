"""The frame of a stage: one record by one process, and faults as one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitrank import records, stage
from bitrank.errors import UserError

RECORD = records.Record(stage="train", treatment={}, result={}, observation={})
NO_ROOM = 2**60


def too_much_for_torch() -> records.Record:
    torch.empty(NO_ROOM, dtype=torch.uint8)
    return RECORD


def too_much_for_python() -> records.Record:
    bytearray(NO_ROOM)
    return RECORD


def too_much_for_cuda() -> records.Record:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


@pytest.mark.parametrize("work", [too_much_for_torch, too_much_for_python, too_much_for_cuda])
def test_running_out_of_memory_names_the_cures(
    work: stage.Callable[[], records.Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        stage.execute(work, tmp_path / "train.json")
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory")
    for key in ("train.micro_batch_size", "train.gradient_checkpointing", "precision=nf4"):
        assert key in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "train.json").exists()


def test_another_error_keeps_its_traceback(tmp_path: Path) -> None:
    def broken() -> records.Record:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        stage.execute(broken, tmp_path / "train.json")


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stage.execute(lambda: RECORD, tmp_path / "train.json")
    assert not (tmp_path / "train.json").exists()
    monkeypatch.setenv("RANK", "0")
    stage.execute(lambda: RECORD, tmp_path / "train.json")
    assert (tmp_path / "train.json").exists()


def test_a_fault_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> records.Record:
        raise UserError("`adapter.rank` is too large")

    with pytest.raises(SystemExit):
        stage.execute(wrong, tmp_path / "train.json")
    assert capsys.readouterr().err == "error: `adapter.rank` is too large\n"


def test_the_frame_does_not_import_torch() -> None:
    script = "import sys, bitrank.stage; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("kept", ["", "the next run goes on after step 5"])
def test_ctrl_c_is_one_line(kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> records.Record:
        raise KeyboardInterrupt(kept) if kept else KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        stage.execute(interrupted, tmp_path / "train.json")
    with pytest.raises(SystemExit), stage.importing():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    nothing = "nothing of this stage was kept"
    assert capsys.readouterr().err == f"interrupted: {kept or nothing}\ninterrupted: {nothing}\n"
