"""Seeds, threads and device before a computation; versions and commit beside its result."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bitrank import hardware
from bitrank.config import RuntimeConfig
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


def prepare_runtime(runtime: RuntimeConfig) -> torch.device:
    """Set threads and deterministic kernels; return the device.

    Raises:
        UserError: the configured device is not there.
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
    return torch.device(runtime.device)


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
    """The commit and whether tracked files differ from it; both null outside a git checkout."""
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
