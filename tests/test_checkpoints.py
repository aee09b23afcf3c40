"""A killed training goes on where it was, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from bitrank import batches, checkpoints, config, environment, identity, records, training
from bitrank.checkpoints import Checkpoints

Run = Callable[..., records.Record]
STEPS = ("train.epochs=2", "adapter.dropout=0.1")  # 12 steps, 24 forward passes


class Killed(BaseException):
    """What no `except Exception` sees, as a signal."""


@pytest.fixture
def run(
    quantized: Callable[[str], Path],
    prepared: Path,
    compose: Callable[..., config.RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Train, optionally stopped at a forward pass; a checkpoint is due at every step."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_TIME_IN_CHECKPOINTS", 1e9)

    def trained(
        *overrides: str, name: str = "adapter", stop_at: int | None = None,
        with_: BaseException | None = None,
    ) -> records.Record:  # fmt: skip
        whole, count = batches.supervised_loss, 0

        def counted(*arguments: Any) -> Any:
            nonlocal count
            count += len(arguments) < 3 or not isinstance(arguments[2], int)  # not in validation
            if count == stop_at:
                raise with_ or Killed
            return whole(*arguments)

        monkeypatch.setattr(batches, "supervised_loss", counted)
        full = "adapter=full" in overrides
        point = compose(*(STEPS[:1] if full else STEPS), *overrides)
        try:
            return training.train_adapter(
                point.train, point.adapter, point.precision, point.seeds, point.runtime,
                point.data.max_sequence_tokens,
                quantized(point.precision.name), prepared, tmp_path / name, tmp_path / "kept",
            )  # fmt: skip
        finally:
            monkeypatch.setattr(batches, "supervised_loss", whole)

    return trained


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("stop_at", [2, 7, 14, 24])
def test_killed_and_resumed_equals_uninterrupted(
    precision: str, stop_at: int, run: Run, tmp_path: Path
) -> None:
    """Before the first checkpoint, between two halves of a global batch, in the second epoch."""
    whole = run(f"precision={precision}", name="whole")
    with pytest.raises(Killed):
        run(f"precision={precision}", name="parts", stop_at=stop_at)
    assert not (tmp_path / "parts").exists()
    parts = run(f"precision={precision}", name="parts")
    assert parts.result == whole.result
    assert parts.treatment == whole.treatment
    assert identity.hash_files(tmp_path / "parts") == identity.hash_files(tmp_path / "whole")
    finished = (stop_at - 1) // 2
    assert parts.observation["resumed_at_steps"] == ([finished] if finished else [])
    assert not list((tmp_path / "kept").iterdir()), "an ended training leaves no checkpoint"


@pytest.mark.parametrize(
    "overrides",
    [
        ("precision=fp32", "adapter=full", "train.learning_rate=1e-3"),
        ("adapter.use_dora=true",),
        ("train.optimizer=adamw_8bit", "adapter.rank=32"),
        ("train.gradient_checkpointing=true",),
        ("train.early_stopping_patience=2", "train.validation_steps=1", "train.learning_rate=0.3"),
    ],
)
def test_every_way_of_training_is_resumed(overrides: tuple[str, ...], run: Run) -> None:
    whole = run(*overrides, name="whole")
    stop_at = 2 * whole.treatment["num_steps"] - 1  # in the last step
    with pytest.raises(Killed):
        run(*overrides, name="parts", stop_at=stop_at)
    parts = run(*overrides, name="parts")
    assert parts.observation["resumed_at_steps"]
    assert parts.result == whole.result


def test_a_training_may_be_killed_more_than_once(run: Run) -> None:
    whole = run(name="whole")
    for stop_at in (5, 6):
        with pytest.raises(Killed):
            run(stop_at=stop_at)
    parts = run()
    assert parts.result == whole.result
    assert parts.observation["resumed_at_steps"] == [2, 4]


def test_a_checkpoint_cut_short_is_passed_over(run: Run, tmp_path: Path) -> None:
    whole = run(name="whole")
    with pytest.raises(Killed):
        run(stop_at=9)
    (folder,) = (tmp_path / "kept").iterdir()
    (sealed,) = folder.glob("checkpoint-*")
    half = folder / "checkpoint-9"  # newer, and never sealed
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"PK")
    assert run().observation["resumed_at_steps"] == [4]
    with pytest.raises(Killed):
        run(stop_at=9)
    (sealed / "optimizer.pt").write_bytes(b"PK")  # a file that changed after it was sealed
    again = run()
    assert again.observation["resumed_at_steps"] == []
    assert again.result == whole.result


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(name="whole")
    write = Trainer._save_checkpoint

    def fill(trainer: Trainer, *arguments: Any) -> None:
        write(trainer, *arguments)
        if trainer.state.global_step > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trainer, "_save_checkpoint", fill)
    with pytest.raises(Killed):
        run(stop_at=12)
    assert "no checkpoint at step 4, training goes on: [Errno 28]" in caplog.text
    (folder,) = (tmp_path / "kept").iterdir()
    assert [p.name for p in folder.iterdir()] == ["checkpoint-3"]
    assert run().result == whole.result


def test_ctrl_c_names_the_step(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt, match="the next run goes on after step 5"):
        run(stop_at=11, with_=KeyboardInterrupt())


@pytest.mark.parametrize(
    "override", ["seeds.order=1", "train.learning_rate=1e-3", "adapter.rank=4", "precision=fp4"]
)
def test_another_training_does_not_take_the_checkpoint(override: str, run: Run) -> None:
    with pytest.raises(Killed):
        run("precision=nf4", stop_at=11)
    assert run(override).observation["resumed_at_steps"] == []


def test_another_library_or_line_of_code_does_not_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Checkpoints({}, tmp_path).folder
    assert Checkpoints({}, tmp_path).folder == before
    with monkeypatch.context() as patch:
        patch.setattr(environment, "describe_packages", lambda: {"torch": "0"})
        assert Checkpoints({}, tmp_path).folder != before
    monkeypatch.setattr(identity, "hash_file", lambda path: "other")
    assert Checkpoints({}, tmp_path).folder != before


def test_two_processes_do_not_run_the_same_training_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    order: list[str] = []

    def second() -> None:  # a lock belongs to an open file, so a thread stands for a process
        with Checkpoints({"rank": 8}, tmp_path).alone():
            order.append("second")

    waiting = threading.Thread(target=second, daemon=True)
    with Checkpoints({"rank": 8}, tmp_path).alone():
        waiting.start()
        waiting.join(0.5)
        assert "another has the same training" in caplog.text
        with Checkpoints({"rank": 4}, tmp_path).alone():  # another training does not wait
            order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
