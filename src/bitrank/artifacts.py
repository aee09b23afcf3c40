"""Folders that appear whole or not at all, and what others packed."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends well."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the plain files of an archive below `folder`; links and devices are left out.

    What `extractall(filter="data")` is for, which Python has from 3.11.4 on only.

    Raises:
        ExtractError: a name leads out of the folder.
    """
    root = folder.resolve()
    for entry in archive:
        target = (root / entry.name).resolve()
        if not target.is_relative_to(root):
            raise tarfile.ExtractError(f"{entry.name!r} lies outside of it")
        stream = archive.extractfile(entry) if entry.isfile() else None
        if stream is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy)
