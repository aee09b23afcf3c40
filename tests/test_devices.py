"""Measurements run alone; a sweep point has a GPU to itself."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path

import pytest

from bitrank import devices

LISTED = """#!/bin/sh
echo "0, GPU-aa"
echo "1, GPU-bb"
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test's own: others may measure on this machine meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text(LISTED)
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class Worker(threading.Thread):
    """Uses the device until it is told to end. A lock belongs to an open file, not to a thread."""

    def __init__(self, order: list[str], name: str, alone: bool) -> None:
        super().__init__(daemon=True, name=name)
        self.order, self.alone = order, alone
        self.began, self.ending = threading.Event(), threading.Event()

    def run(self) -> None:
        with devices.using("cpu", self.alone):
            self.order.append(self.name)
            self.began.set()
            self.ending.wait(10)


def test_a_measurement_waits_for_those_who_compute_and_keeps_new_ones_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    order: list[str] = []
    first, second, measuring, late = (
        Worker(order, name, alone=name == "measuring")
        for name in ("first", "second", "measuring", "late")
    )
    first.start()
    second.start()
    assert first.began.wait(5), "two who compute do not wait for each other"
    assert second.began.wait(5)
    measuring.start()
    measuring.join(0.3)
    assert not measuring.began.is_set()
    late.start()
    late.join(0.3)
    assert not late.began.is_set(), "who comes after the measurement lets it go first"
    first.ending.set()
    second.ending.set()
    assert measuring.began.wait(5)
    late.join(0.3)
    assert not late.began.is_set(), "it is alone"
    measuring.ending.set()
    assert late.began.wait(5)
    late.ending.set()
    assert order[2:] == ["measuring", "late"]
    assert "to be alone on cpu" in caplog.text


def test_each_point_gets_a_gpu_of_its_own(two_gpus: None) -> None:
    with devices.leased("cuda") as first, devices.leased("cuda") as second:
        assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
        waiting = threading.Thread(target=_lease, daemon=True)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive(), "no third GPU"
    waiting.join(5)
    assert not waiting.is_alive()


def test_only_visible_gpus_are_leased_and_known_by_their_uuid(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.identify_gpus() == {"1": "GPU-bb"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa")
    assert devices.identify_gpus() == {"GPU-aa": "GPU-aa"}


def test_a_cpu_needs_no_lease(two_gpus: None) -> None:
    with devices.leased("cpu") as environment:
        assert environment == {}


def _lease() -> None:
    with devices.leased("cuda"):
        pass
