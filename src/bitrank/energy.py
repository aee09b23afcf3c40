"""Energy that a device took, where it counts it: NVIDIA's management library, on GPUs since Volta.

A CPU's counter (RAPL) is of the whole package, whoever else works on it, and is for root only: on a
CPU the energy is unknown.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

DEFINITION = (
    "joules between two readings of the GPU's own counter (NVML, total energy consumption), before "
    "the first and after the last timed step, idle power included; null where the device does not "
    "count, or `nvidia-ml-py` is not installed"
)


class EnergyMeter:
    """Joules that the device took inside the block; `joules` stays None where it does not tell."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read = _find_counter(device)
        self.joules: float | None = None

    def __enter__(self) -> EnergyMeter:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        end = self._now()
        if self._start is not None and end is not None:
            self.joules = end - self._start

    def _now(self) -> float | None:
        if self._read is None:
            return None
        torch.cuda.synchronize(self._device)
        return self._read()


def _find_counter(device: torch.device) -> Callable[[], float] | None:
    """What reads the joules of this device since its driver was loaded."""
    if device.type != "cuda":
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    # By its identity: NVML does not number the devices as CUDA_VISIBLE_DEVICES does.
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(identity)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
