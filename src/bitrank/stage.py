"""The frame of every stage script: time it, write its record, and show a user's fault as one line.

The record's observation gains the wall time of the imports and of the stage's work, and the
environment it ran in.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, NoReturn

from bitrank import config, devices, environment, processes, records
from bitrank.errors import UserError

Use = Literal["shared", "alone", "none"]
"""How a stage uses the configured device."""

FULL_DISK = os.strerror(errno.ENOSPC)

_import_seconds = 0.0


@contextmanager
def importing() -> Iterator[None]:
    """Import a stage's modules here: it is timed, and the garbage collector keeps out of the way.

    torch, transformers and PEFT make millions of objects that live as long as the process. Looking
    through them for garbage, while they load and once more at the exit, takes a quarter of the
    start-up.
    """
    global _import_seconds
    # A thread of torch's that waits for the others burns its core for milliseconds before it
    # sleeps. Where another program wants that core, steps took up to 20 times as long; with a
    # shorter wait a step of a free machine takes no longer. libgomp reads this when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    start = time.perf_counter()
    gc.disable()
    try:
        yield
    except KeyboardInterrupt:
        _end_interrupted("")
    finally:
        gc.freeze()
        gc.enable()
        _import_seconds += time.perf_counter() - start


OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What torch says on CUDA and on a CPU. Its class on a CPU is a mere RuntimeError."""


@contextmanager
def told_when_out_of_memory() -> Iterator[None]:
    """Turn what torch and Python raise when memory runs out into a UserError with the cures."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(t in str(error) for t in OUT_OF_MEMORY):
            raise
        reason = str(error).strip().splitlines()
        raise UserError(
            f"out of memory{f' ({reason[0]})' if reason else ''}. In training: lower "
            "`train.micro_batch_size` (`train.global_batch_size` stays), set "
            "train.gradient_checkpointing=true, or hold the base in fewer bits (precision=nf4); in "
            "evaluation: lower `evaluate.batch_size`"
        ) from error


def execute(work: Callable[[], records.Record], path: Path, device: Use = "shared") -> None:
    """Run `work` and write its record to `path`; exit with status 1 on a user's fault.

    A measurement must have the device alone. Of several processes the first one writes: all have
    the same record.
    """
    level = logging.INFO if processes.is_first() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    # A library's coming changes are for us, who pin its version, not for the person who runs it.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        with told_when_out_of_memory(), _device(device):
            start = time.perf_counter()
            record = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        _end_interrupted(str(error))
    except Exception as error:
        # Each library has an exception of its own for it; torch's hides the reason behind itself.
        if FULL_DISK not in f"{error} {error.__context__}":
            raise
        print(
            f"error: {FULL_DISK}: what was finished before is kept; make room and run "
            "`dvc repro` again (`bitrank gc` tells what nothing refers to)",
            file=sys.stderr,
        )
        sys.exit(1)
    observation = {
        **record.observation,
        "import_seconds": _import_seconds,
        "wall_seconds": time.perf_counter() - start,
        "environment": environment.describe(),
    }
    if processes.is_first():
        records.write_record(dataclasses.replace(record, observation=observation), path)


def _device(use: Use) -> AbstractContextManager[None]:
    """Of several processes of one stage the first one holds the device for all."""
    if use == "none" or not processes.is_first():
        return nullcontext()
    return devices.using(config.load().runtime.device, alone=use == "alone")


def _end_interrupted(kept: str) -> NoReturn:
    print(f"interrupted: {kept or 'nothing of this stage was kept'}", file=sys.stderr)
    sys.exit(130)  # 128 + SIGINT, as a shell tells it
