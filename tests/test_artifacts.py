"""A folder appears whole or not at all; an archive is unpacked below its folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from bitrank.artifacts import unpack, whole_folder


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:  # noqa: PT012
        (folder / "a").write_text("2")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_success_replaces_what_was_there(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with whole_folder(tmp_path / "out") as folder:
            (folder / name).write_text(name)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def pack(*names: str, link: str | None = None) -> tarfile.TarFile:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        if link is not None:
            entry = tarfile.TarInfo("sub")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    packed.seek(0)
    return tarfile.open(fileobj=packed)


def test_an_archive_is_unpacked_with_its_folders(tmp_path: Path) -> None:
    unpack(pack("sweep/a", "sweep/b/c"), tmp_path / "here")
    assert (tmp_path / "here" / "sweep" / "b" / "c").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../out", "sweep/../../out", "/out"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(tarfile.ExtractError, match="lies outside of it"):
        unpack(pack(name), tmp_path / "here")
    assert not (tmp_path / "out").exists()


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    unpack(pack("sub/a", link=str(tmp_path / "elsewhere")), tmp_path / "here")
    assert (tmp_path / "here" / "sub" / "a").read_bytes() == b"x"
    assert not list((tmp_path / "elsewhere").iterdir())
