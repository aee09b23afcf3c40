"""`bitrank archive <sweep>`: one file to publish, and what `verify` reads it from again.

It has what is kept of the sweep as it is, its report, the code and configuration of its commit, and
the versions that it ran with. The same sweep gives the same bytes (with the same zlib). What would
tell of a person (a home folder) or give away a token is refused, not rewritten: records are bound
by hashes.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bitrank import artifacts, composition, history, papers, paths, records
from bitrank.errors import ConfigError, UserError
from bitrank.inspection import Inspection
from bitrank.runs import read_run
from bitrank.sweep_projection import MANIFEST, Sweep, read_sweep
from bitrank.verify import PARTS, verify
from bitrank.workspace import CODE

SUFFIX = ".tar.gz"
PROJECT = "project"
"""Folder of the commit's files in an archive."""
REPORT = "report"
PUBLISHED = (
    *CODE, str(composition.CONF), ".dvc/config", "constraints.txt", "pyproject.toml", "Makefile",
    "README.md", "CITATION.cff",
)  # fmt: skip
BINARY = (".png", ".pdf")
HOME = re.compile(r"(?<![\w.-])(/(home|Users)/[^/\s\"'`]+|/root/)")
TOKEN = re.compile(
    r"\b(hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16})|://[^/\s:@]+:[^/\s:@]+@"
)
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY)$")
"""What the name of a variable of the environment ends with, if its value is not for others."""
ABOUT = """# {name}

A sweep of bitrank, at commit {commit}.

- `sweep.json`: every point with its overrides, status and the hash of its lock; a folder for each
  with `params.yaml`, `dvc.lock`, records (`results/`), item logs (`items/`) and report.
- `report/`: what the sweep shows.
- `project/`: code and configuration at the commit. `environment.json`: versions and hardware.

In a clone of the project, `bitrank verify <this file or folder>` checks it against the commit, and
`bitrank verify <...> --rerun` computes it again.
"""


class PrivacyError(ConfigError):
    """All places that are not for others."""

    subject = "nothing was written: what would be published has"


@contextmanager
def opened(sweep: str) -> Iterator[Path]:
    """The folder of a sweep: by its name, a folder's path, or an archive, which is unpacked.

    A sweep that is kept for git is unpacked too; of its name, that in `data/sweeps` comes first.

    Raises:
        UserError: there is nothing of the kind.
    """
    path = Path(sweep)
    places = [path, paths.SWEEPS / sweep, paths.PAPERS / sweep]
    place = next((p for p in places if (p / MANIFEST).is_file()), None)
    if place is not None and (place / papers.ITEMS).is_file():
        with papers.unpacked(place) as whole:
            yield whole
    elif place is not None:
        yield place
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="bitrank-archive-") as folder:
            yield _unpack(path, Path(folder))
    else:
        yield paths.SWEEPS / sweep


def _unpack(file: Path, folder: Path) -> Path:
    try:
        with tarfile.open(file) as tar:
            artifacts.unpack(tar, folder)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # below stands what each format says
        raise UserError(f"{file} is no archive of a sweep that can be read: {reason}") from None
    found = sorted(folder.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        raise UserError(f"{file} is no archive of a sweep: it has {len(found)} {MANIFEST}")
    return found[0].parent


def archive(folder: Path, target: Path, force: bool) -> Inspection:
    """Write the archive of `data/sweeps/<sweep>`; return what verifying it found.

    `force`: also with faults or points that are not done, which the archive then names.

    Raises:
        UserError: faults, points that are not done, no report, or no commit.
        PrivacyError: with all places of a home folder or a token.
    """
    sweep = read_sweep(folder)
    found = verify(folder)
    left = [f"{point.key} is {point.status}" for point in sweep.points if point.status != "done"]
    wrong = [*left, *found.tell_faults()]
    if wrong and not force:
        told = "".join(f"\n  {line}" for line in wrong)
        raise UserError(f"nothing was written; run what is missing, or add --force:{told}")
    if not (folder / REPORT).is_dir():
        raise UserError(f"{folder} has no report: `bitrank report {sweep.id}` makes it")
    files = {name: path.read_bytes() for name, path in _kept(sweep, folder)}
    with history.checked_out(sweep.manifest.get("git_commit")) as commit:
        project = {f"{PROJECT}/{name}": body for name, body in _published(commit)}
    about = ABOUT.format(name=sweep.id, commit=sweep.manifest["git_commit"])
    if wrong:
        about += "\n## What is not as it should be\n\n" + "".join(f"- {w}\n" for w in wrong)
    files |= {"README.md": about.encode(), "environment.json": _describe(sweep).encode()}
    _check_privacy(files, project)
    _write(sweep.id, {**files, **project}, target)
    return found


def _kept(sweep: Sweep, folder: Path) -> Iterator[tuple[str, Path]]:
    names = [MANIFEST, REPORT, *(f"{p.key}/{part}" for p in sweep.points for part in PARTS)]
    for name in names:
        for path in (folder / name, *(folder / name).rglob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _published(commit: Path) -> Iterator[tuple[str, bytes]]:
    for name in PUBLISHED:
        for path in (commit / name, *(commit / name).rglob("*")):
            if path.is_file():
                yield path.relative_to(commit).as_posix(), path.read_bytes()


def _describe(sweep: Sweep) -> str:
    """What the stages of all points ran with: each value with the points that had it."""
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for point in sweep.points:
        if point.status == "done":
            run = read_run(point.folder / "results", {})
            for stage in run.records:
                environment = run.find(stage, "observation", "environment") or {}
                for name, value in environment.items():
                    seen[name][records.canonical_json(value)].add(point.key)
    told = {
        name: [{"value": json.loads(value), "points": sorted(keys)}
               for value, keys in sorted(values.items())]
        for name, values in seen.items()
    }  # fmt: skip
    return json.dumps(told, indent=2, sort_keys=True) + "\n"


def _check_privacy(files: Mapping[str, bytes], project: Mapping[str, bytes]) -> None:
    """The project's files are in git already, where a home folder may be an example."""
    secrets = [v for name, v in os.environ.items() if SECRET.search(name) and len(v) >= 8]
    home = Path.home().as_posix()
    faults = []
    for name, body in {**files, **project}.items():
        if name.endswith(BINARY):
            continue
        for number, line in enumerate(body.decode("utf-8", "replace").splitlines(), 1):
            if TOKEN.search(line) or any(secret in line for secret in secrets):
                faults.append(f"{name}, line {number}: a token or password; revoke it")
            is_home = HOME.search(line) or (len(home) > 1 and home + "/" in line)
            if name in files and is_home:
                faults.append(
                    f"{name}, line {number}: a home folder; name the file relative to the project "
                    "(`data.rows.path`, `model.source.path`) and run the sweep again"
                )
    if faults:
        raise PrivacyError(faults)


def _write(root: str, files: Mapping[str, bytes], target: Path) -> None:
    """Names in order, no times, no owners: the bytes depend on the files alone."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as stream:
        stream.write(plain.getvalue())
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(packed.getvalue())
    partial.replace(target)
