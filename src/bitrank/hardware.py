"""What machine this is, told without torch: the fingerprint that timings depend on.

The fingerprint names kinds and sizes, never a host, a user or a serial number.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
"""What decides which CPU kernels of torch and bitsandbytes run."""


def fingerprint() -> dict[str, Any]:
    """CPU model, cores, memory in bytes, instruction sets, and each NVIDIA GPU with its driver."""
    return {
        "cpu": {
            "model": _cpu_field("model name") or platform.processor() or None,
            "architecture": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "features": cpu_features(),
        },
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
    }


def cpu_features() -> list[str]:
    flags = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    return [feature for feature in CPU_FEATURES if feature in flags]


def memory_bytes() -> int | None:
    """Installed memory, or a smaller limit of the container."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(installed, int(text)) if text.isdigit() else installed


def gpus() -> list[dict[str, Any]]:
    """Name, memory in bytes and driver of each GPU that nvidia-smi lists; [] without it."""
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in answer.stdout.strip().splitlines()]
    return [
        {"name": name, "memory_bytes": int(mebibytes) * 2**20, "driver": driver}
        for name, mebibytes, driver in rows
    ]


def _cpu_field(name: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return line.split(":", 1)[1].strip()
    return None
