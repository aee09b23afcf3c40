"""`dvc repro` in a sweep's workspace, without what DVC repeats for each stage.

DVC reads and writes the whole of `dvc.lock` after each stage that ran or was restored: half a
second for a lock of this size, which an interrupted `dvc repro` needs to go on from. A workspace
that was interrupted is thrown away, and the next one restores what was finished from the run-cache.
So here DVC writes the lock once, at the end, whatever the end is: the same bytes.

A workspace may come with the lock of a point that is done. Stages whose entry holds here too are
checked out by it, without a search in the run-cache; DVC then finds them up to date, and those that
are not it restores or runs as ever.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAILED, INTERRUPTED = 255, 252
"""Exit statuses of `dvc repro`."""
LOCK = Path("dvc.lock")


def reproduce(targets: Sequence[str]) -> None:
    """Bring these stages of the project in the current folder up to date.

    Raises:
        DvcException: as `dvc repro` has it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    finished: dict[str, tuple[Any, list[Any]]] = {}

    def run_stage(stage: Any, **options: Any) -> Any:
        LOCK.unlink(missing_ok=True)  # it was read; to what ends here it has nothing to say
        changed = None
        try:
            repo.stage_cache.restore(stage, run_cache=False)
        except DvcException:  # another command, value or input, or not in the cache any more
            changed = stage.reproduce(**options)
        finished.setdefault(stage.path, (stage.dvcfile, []))[1].append(stage)
        return changed

    with Repo() as repo:
        try:
            repo.reproduce(targets=targets, repro_fn=run_stage)
        finally:
            for file, stages in finished.values():
                file.dump_stages(stages, update_pipeline=False)


def main(targets: Sequence[str]) -> int:
    """What `dvc repro TARGET ...` prints and returns."""
    gc.disable()  # DVC makes many small objects and keeps most: a tenth of its time
    from dvc.exceptions import DvcException

    log = logging.getLogger("dvc")  # set up by DVC: it tells the chain of what caused an error
    try:
        reproduce(targets)
    except KeyboardInterrupt:
        log.exception("interrupted by the user")
        return INTERRUPTED
    except DvcException:
        log.exception("")
        return FAILED
    except Exception:  # a full disk, say
        log.exception("unexpected error")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
