"""The project's files as they were at a commit, from git."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitrank import artifacts
from bitrank.errors import UserError


@contextmanager
def checked_out(commit: object) -> Iterator[Path]:
    """Yield a temporary folder with all files of a commit; the working tree is not touched.

    Raises:
        UserError: it is no commit of this history; the message says why that may be.
    """
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise UserError(f"it names no commit ({commit!r}): the sweep ran outside of a git checkout")
    if _ask("rev-parse", "--git-dir") is None:
        raise UserError("there is no git history here: run this in a clone of the project")
    if _ask("cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(f"the commit {commit[:12]} is not in this clone: {_explain_absence()}")
    body = _ask("archive", "--format=tar", commit)
    if body is None:
        raise UserError(f"git cannot read the commit {commit[:12]}: `git fsck` tells why")
    with tempfile.TemporaryDirectory(prefix="bitrank-commit-") as folder:
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            artifacts.unpack(tar, Path(folder))
        yield Path(folder)


def _explain_absence() -> str:
    if (_ask("rev-parse", "--is-shallow-repository") or b"").strip() == b"true":
        return "the clone is shallow; `git fetch --unshallow` brings the rest of the history"
    return (
        "`git fetch --all --tags` may bring it; else it was never pushed, was rewritten, or is of "
        "another project"
    )


def _ask(*arguments: str) -> bytes | None:
    """What git prints; null where it fails or is not there."""
    try:
        # Files are to be those of the commit to the byte, whatever the user's settings are.
        command = ["git", "-c", "core.autocrlf=false", "-c", "core.eol=lf", *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
