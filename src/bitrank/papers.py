"""Sweeps that are committed: what a clone needs to rebuild their reports without training.

`data/papers/<sweep>` has the layout of `data/sweeps/<sweep>`: manifest, and for each point its
configuration, lock and records as text. The item logs are one compressed file, since text of a
thousand items a log would be most of a clone; the records name each log's hash, which is checked
when it is read. The report stands beside them, and the same records give the same bytes.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitrank import artifacts, claims, paths
from bitrank.errors import UserError
from bitrank.study import read_study
from bitrank.sweep_projection import MANIFEST, REPORT
from bitrank.sweep_report import write_sweep_report

ITEMS = "items.tar.xz"
KEPT = ("params.yaml", "dvc.lock", "outcome.json")
"""Of each point, beside its records."""


def keep(sweep: Path, papers: Path = paths.PAPERS, known: Path = claims.FOLDER) -> Path:
    """Copy what a reader needs of `data/sweeps/<sweep>`, with a report made from the copy.

    Raises:
        UserError: there is no such sweep, or a point of it that is done cannot be read.
    """
    study = read_study(sweep)
    unreadable = [str(left) for left in study.left_out if left.status == "unreadable"]
    if unreadable:
        raise UserError(f"{sweep} is not kept: {'; '.join(unreadable)}")
    papers.mkdir(parents=True, exist_ok=True)
    with artifacts.whole_folder(papers / sweep.name) as paper:
        shutil.copyfile(sweep / MANIFEST, paper / MANIFEST)
        for point in study.sweep.points:
            _copy_point(point.folder, paper / point.key)
        _pack(sweep, sorted(log for p in study.sweep.points for log in _logs(p.folder)), paper)
        with unpacked(paper) as whole:
            write_sweep_report(whole, known)
            shutil.copytree(whole / REPORT, paper / REPORT)
    return papers / sweep.name


def _copy_point(point: Path, target: Path) -> None:
    files = [point / name for name in KEPT] + sorted((point / "results").glob("*.json"))
    for file in files:
        if file.is_file():
            copy = target / file.relative_to(point)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _logs(point: Path) -> list[Path]:
    return sorted((point / "items").rglob("*.jsonl"))


def _pack(sweep: Path, logs: list[Path], paper: Path) -> None:
    """Names and contents only: no time, no owner."""
    with (
        lzma.open(paper / ITEMS, "wb", preset=9) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for log in logs:
            entry = tarfile.TarInfo(log.relative_to(sweep).as_posix())
            entry.size, entry.mode = log.stat().st_size, 0o644
            with log.open("rb") as body:
                archive.addfile(entry, body)


@contextmanager
def unpacked(paper: Path) -> Iterator[Path]:
    """A copy as the sweep was, item logs in their places, without a report; gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield _unpack(paper, Path(folder) / paper.name)


def _unpack(paper: Path, target: Path) -> Path:
    shutil.copytree(paper, target, ignore=shutil.ignore_patterns(REPORT, ITEMS))
    try:
        with tarfile.open(paper / ITEMS, "r:xz") as archive:
            artifacts.unpack(archive, target)
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{paper / ITEMS} cannot be read ({error}): restore it from git") from None
    return target


def restore(paper: Path, sweeps: Path = paths.SWEEPS) -> Path:
    """Bring a kept sweep back, so that each command that takes a sweep works on it.

    Raises:
        UserError: it is not kept, or there is a sweep of this name.
    """
    find([paper.name], paper.parent)
    target = sweeps / paper.name
    if target.exists():
        raise UserError(f"{target} exists: remove it first, or leave it as it is")
    with artifacts.whole_folder(target) as partial:
        partial.rmdir()
        _unpack(paper, partial)
    return target


def find(names: list[str], papers: Path = paths.PAPERS) -> list[Path]:
    """All that are kept, or those of these names.

    Raises:
        UserError: one of these is not kept.
    """
    kept = sorted(file.parent for file in papers.glob(f"*/{MANIFEST}"))
    lost = [name for name in names if papers / name not in kept]
    if lost:
        there = ", ".join(paper.name for paper in kept) or "none"
        raise UserError(f"not kept in {papers}: {', '.join(lost)}; there are: {there}")
    return [paper for paper in kept if not names or paper.name in names]


def rebuild(paper: Path, known: Path = claims.FOLDER) -> None:
    """Write the report anew from the records; raises UserError if they cannot be read."""
    with unpacked(paper) as whole:
        write_sweep_report(whole, known)
        with artifacts.whole_folder(paper / REPORT) as partial:
            partial.rmdir()
            shutil.copytree(whole / REPORT, partial)


def check(names: list[str], papers: Path = paths.PAPERS) -> list[Path]:
    """Those that are kept, all of whose reports are what their records give, to the byte.

    Raises:
        UserError: with all files that differ; or records cannot be read, or are not kept.
    """
    kept = find(names, papers)
    told = [f"\n  {paper / REPORT / name}" for paper in kept for name in find_differences(paper)]
    if told:
        raise UserError(
            "not what the records give with this code and these claims (`bitrank paper` writes "
            f"them anew):{''.join(told)}"
        )
    return kept


def find_differences(paper: Path, known: Path = claims.FOLDER) -> list[str]:
    """Files of the report that are not, to the byte, what the records give now.

    Raises:
        UserError: the records cannot be read.
    """
    with unpacked(paper) as whole:
        write_sweep_report(whole, known)
        built, there = (_read_all(folder / REPORT) for folder in (whole, paper))
    return sorted(name for name in built | there if built.get(name) != there.get(name))


def _read_all(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
