"""Several processes of one training run, one a device, as `accelerate launch` starts them.

What is told is read from the environment that the launcher sets; alone, a process is the first.
"""

from __future__ import annotations

import os


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def are_sharding() -> bool:
    """Whether each process is to hold a part of the model only (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
