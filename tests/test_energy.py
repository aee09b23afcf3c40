"""Energy is the difference of the device's own counter, and unknown without one."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CPU

from bitrank.energy import EnergyMeter

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    pass


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NVML with one device; `millijoules` is what its counter shows."""
    nvml = SimpleNamespace(millijoules=5_000_000, asked=[], NVMLError=NVMLError)
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda identity: nvml.asked.append(identity) or "handle"
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: nvml.millijoules
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    properties = SimpleNamespace(uuid="1f3d")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return nvml


def test_the_difference_of_two_readings_is_told_in_joules(counter: SimpleNamespace) -> None:
    with EnergyMeter(GPU) as meter:
        counter.millijoules += 12_500
    counter.millijoules += 99_000
    assert meter.joules == 12.5
    assert counter.asked == ["GPU-1f3d"]


def test_a_device_that_does_not_count_is_unknown(counter: SimpleNamespace) -> None:
    def refuse(_: Any) -> None:
        raise NVMLError("not supported")

    counter.nvmlDeviceGetTotalEnergyConsumption = refuse
    with EnergyMeter(GPU) as meter:
        pass
    assert meter.joules is None


def test_without_the_library_and_on_a_cpu_it_is_unknown(
    counter: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EnergyMeter(CPU) as meter:
        counter.millijoules += 1
    assert meter.joules is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with EnergyMeter(GPU) as meter:
        counter.millijoules += 1
    assert meter.joules is None
