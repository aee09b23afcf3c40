"""The frame of every stage script: time it, write its record, and show a user's fault as one line.

The record's observation gains the wall time of the stage's work and the environment it ran in.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from bitrank import environment, records
from bitrank.errors import UserError


def execute(work: Callable[[], records.Record], path: Path) -> None:
    """Run `work` and write its record to `path`; exit with status 1 on a user's fault."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # A library's coming changes are for us, who pin its version, not for the person who runs it.
    warnings.simplefilter("ignore", FutureWarning)
    start = time.perf_counter()
    try:
        record = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: nothing of this stage was kept", file=sys.stderr)
        sys.exit(130)
    observation = {
        **record.observation,
        "wall_seconds": time.perf_counter() - start,
        "environment": environment.describe(),
    }
    records.write_record(dataclasses.replace(record, observation=observation), path)
