"""Taking turns on a machine's devices: measurements run alone, and a GPU has one sweep point.

Locks are of the operating system, on files in the folder for temporary files: a process that dies,
however it dies, gives its locks back. They hold on one machine, among all projects on it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 1.0
LOG = logging.getLogger(__name__)


@contextmanager
def using(kind: str, alone: bool) -> Iterator[None]:
    """Use this machine's devices of a kind ("cpu", "cuda") beside others, or alone.

    Who wants a device alone waits until nobody uses it, and meanwhile nobody new begins: everyone
    passes through a gate first, which is kept shut by the one who waits.
    """
    names = ["cpu"] if kind == "cpu" else sorted(identify_gpus().values()) or [kind]
    with ExitStack() as held:
        for name in names:
            gate = held.enter_context(_opened(_file(f"{name}-gate")))
            _lock(gate, fcntl.LOCK_EX, f"a measurement on {name} goes first")
            device = held.enter_context(_opened(_file(name)))
            what = f"to be alone on {name}, which others still use"
            _lock(device, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, what)
            if not alone:
                fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextmanager
def leased(kind: str) -> Iterator[Mapping[str, str]]:
    """Lease one GPU that no other sweep point has; yield the environment that shows only it."""
    gpus = identify_gpus() if kind == "cuda" else {}
    if not gpus:
        yield {}
        return
    with ExitStack() as opened:
        files = {n: opened.enter_context(_opened(_file(f"{i}-lease"))) for n, i in gpus.items()}
        while True:
            for name, file in files.items():
                if try_lock(file):
                    yield {"CUDA_VISIBLE_DEVICES": name}
                    return
            time.sleep(SECONDS_BETWEEN_LOOKS)


@contextmanager
def taking_turns(name: str, why: str) -> Iterator[None]:
    """Be the one process of this machine that does what `name` says; `why` one has to wait."""
    with holding(_file(name), why):
        yield


@contextmanager
def holding(path: Path, why: str) -> Iterator[None]:
    """Be the one process that holds the lock of this file; `why` one has to wait."""
    with _opened(path) as lock:
        _lock(lock, fcntl.LOCK_EX, why)
        yield


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of this file now."""
    if not path.is_file():
        return False
    with _opened(path) as lock:
        return not try_lock(lock)


def identify_gpus() -> dict[str, str]:
    """By the name that CUDA_VISIBLE_DEVICES has for it, each visible GPU's UUID; {} without any.

    Numbers start from 0 in every SLURM job, UUIDs are the machine's.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    by_index = dict(line.split(", ") for line in answer.stdout.strip().splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(by_index) if visible is None else [n.strip() for n in visible.split(",") if n]
    return {name: by_index.get(name, name) for name in names}


def try_lock(descriptor: int) -> bool:
    """Whether the file is locked for this process now; if not, another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(descriptor: int, how: int, waiting_for: str) -> None:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        LOG.info("waiting: %s", waiting_for)
        fcntl.flock(descriptor, how)


def _file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"bitrank-{name}.lock"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # NFS locks what can be written
    except PermissionError:  # another user's: Linux lets nobody else open it "to create"
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # which gives the lock back, also when the process is killed
