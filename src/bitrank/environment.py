"""Seeds, threads and device before a computation; versions and commit beside its result."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bitrank import hardware, processes
from bitrank.config import PrecisionConfig, RuntimeConfig
from bitrank.errors import UserError

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "datasets",
    "lm_eval",
    "scikit-learn",
)


COMMIT = "BITRANK_COMMIT"
"""Environment variable: what `describe_commit` is to tell, as JSON."""
PROBE_SIZE = 384
"""Rows of the square matrices that are multiplied to see whether a type is fast."""
TOO_SLOW = 8.0
"""Times as long as in fp32: what kernels made for a type never are, and emulation always is."""


def prepare_runtime(
    runtime: RuntimeConfig, precision: PrecisionConfig | None = None
) -> torch.device:
    """Set threads and deterministic kernels; return the device, one for each process.

    Raises:
        UserError: the configured device is not there, or it computes in a type of `precision` not
            at all or unusably slowly.
    """
    import torch  # seconds to import: stages that compute no tensor do without

    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError("`runtime.device` is cuda, but torch sees no GPU; set runtime.device=cpu")
    torch.set_num_threads(runtime.threads)
    # cuBLAS is deterministic only with a fixed workspace, chosen before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill each new tensor before it is written: 4 % of a step, and nothing reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device(runtime.device)
    if runtime.device == "cuda" and processes.count() > 1:
        device = torch.device("cuda", processes.local_rank())
        torch.cuda.set_device(device)
    if precision is not None:
        _check_speed(device, precision, runtime.allow_slow)
    return device


def _check_speed(device: torch.device, precision: PrecisionConfig, allow_slow: bool) -> None:
    """Raises UserError: no kernel for a configured type, or only one far slower than fp32's."""
    for key in ("compute_dtype", "weight_dtype"):
        name = getattr(precision, key)
        if name == "float32":
            continue
        cure = "choose float32 for both types of `precision`, or another device"
        try:
            slowdown = time_product(device, name) / time_product(device, "float32")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"`precision.{key}` is {name}, in which {device.type} cannot compute ({reason}): "
                f"{cure}"
            ) from None
        if slowdown > TOO_SLOW and not allow_slow:
            raise UserError(
                f"`precision.{key}` is {name}, in which this {device.type} takes {slowdown:.0f} "
                f"times as long as in float32: {cure}, or accept it with runtime.allow_slow=true"
            )


def time_product(device: torch.device, dtype: str) -> float:
    """Seconds of a product of two square matrices in a type, the shortest of three."""
    import torch

    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=getattr(torch, dtype), device=device)
    seconds = []
    for _ in range(4):  # the first one prepares
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # which waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def seed_everything(seed: int) -> None:
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def describe() -> dict[str, Any]:
    """Versions, hardware, threads and commit: what an observation was made with."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": describe_packages(),
        "threads": _threads(),
        "hardware": hardware.fingerprint(),
        **describe_commit(),
    }


def describe_packages() -> dict[str, str | None]:
    """Versions of what computes; null for what is not installed."""
    return {name: _version(name) for name in PACKAGES}


def describe_commit() -> dict[str, Any]:
    """The commit and whether tracked files differ from it; both null outside a git checkout.

    In the workspace of a sweep's point git sees nothing; the sweep's driver tells what it saw.
    """
    told = os.environ.get(COMMIT)
    if told is not None:
        return dict(json.loads(told))
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "stages", "conf")
    return {"git_commit": commit, "git_dirty": None if commit is None else bool(changes)}


def _threads() -> int | None:
    """CPU threads of torch; null in a stage that does not use it."""
    loaded = sys.modules.get("torch")
    return None if loaded is None else int(loaded.get_num_threads())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
