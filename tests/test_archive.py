"""A sweep as one file: whole, the same bytes each time, private, and verified when unpacked."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
from toy_project import Toy

from bitrank import artifacts, records
from bitrank.archive import PrivacyError, archive, opened
from bitrank.errors import UserError
from bitrank.verify import verify


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("toy"))
    toy.commit()
    toy.sweep("adapter.rank=2,4")
    return toy


@pytest.fixture
def sweep(swept: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its folder, with a report; the current directory is the project."""
    (folder,) = (path for path in (swept.folder / "data" / "sweeps").iterdir() if path.is_dir())
    monkeypatch.chdir(swept.folder)
    copied = Path(shutil.copytree(folder, tmp_path / folder.name))
    records.write_text(copied / "report" / "report.md", "# Report\n")
    return copied


def names(file: Path) -> list[str]:
    with tarfile.open(file) as tar:
        return tar.getnames()


def test_it_holds_all_that_a_reader_needs(sweep: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "sweep.tar.gz"
    assert not list(archive(sweep, target, force=False).tell_faults())
    found = {name.removeprefix(f"{sweep.name}/") for name in names(target)}
    for point in sweep.glob("nf4-*"):
        for part in ("params.yaml", "dvc.lock", "outcome.json", "results/train.json"):
            assert f"{point.name}/{part}" in found
    assert found >= {"sweep.json", "report/report.md", "README.md", "environment.json"}
    assert found >= {"project/dvc.yaml", "project/conf/config.yaml", "project/stages/run.py"}
    assert not [name for name in found if "ran.txt" in name or "__pycache__" in name]
    with tarfile.open(target) as tar:
        member = tar.extractfile(f"{sweep.name}/README.md")
        assert member is not None
        commit = json.loads((sweep / "sweep.json").read_text())["git_commit"]
        assert commit in member.read().decode()


def test_the_same_sweep_gives_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"
    archive(sweep, first, force=False)
    time.sleep(1.1)  # beyond the second that a gzip header could hold
    for file in sweep.rglob("*"):
        file.touch()
    archive(sweep, second, force=False)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar.getmembers()} == {
            (0, 0, 0, "", 0o644)
        }


def test_an_archive_and_its_folder_are_verified_in_a_clone(
    sweep: Path, tmp_path: Path, swept: Toy
) -> None:
    target = tmp_path / "sweep.tar.gz"
    archive(sweep, target, force=False)
    with opened(str(target)) as folder:
        assert list(verify(folder).tell_faults()) == []
    with tarfile.open(target) as tar:
        artifacts.unpack(tar, tmp_path / "unpacked")
    unpacked = tmp_path / "unpacked" / sweep.name
    with opened(str(unpacked)) as folder:
        assert folder == unpacked
        assert list(verify(folder).tell_faults()) == []
    answer = swept.run(sys.executable, "-m", "bitrank.cli", "verify", str(target))
    assert answer.returncode == 0, answer.stdout


def test_points_that_are_missing_are_refused_or_named(sweep: Path, tmp_path: Path) -> None:
    body = json.loads((sweep / "sweep.json").read_text())
    body["points"][0]["status"] = "interrupted"
    (sweep / "sweep.json").write_text(json.dumps(body))
    target = tmp_path / "sweep.tar.gz"
    with pytest.raises(UserError, match=r"nf4-r2-s0-\w+ is interrupted"):
        archive(sweep, target, force=False)
    assert not target.exists()
    archive(sweep, target, force=True)
    with tarfile.open(target) as tar:
        member = tar.extractfile(f"{sweep.name}/README.md")
        assert member is not None
        assert "is interrupted" in member.read().decode()


def test_faults_are_refused_and_a_missing_report_too(sweep: Path, tmp_path: Path) -> None:
    (point, *_) = sorted(sweep.glob("nf4-*"))
    (point / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt: is nothing that a sweep keeps"):
        archive(sweep, tmp_path / "a.tar.gz", force=False)
    archive(sweep, tmp_path / "a.tar.gz", force=True)
    assert not [name for name in names(tmp_path / "a.tar.gz") if name.endswith("notes.txt")]
    shutil.rmtree(sweep / "report")
    with pytest.raises(UserError, match="bitrank report"):
        archive(sweep, tmp_path / "b.tar.gz", force=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rows from /home/ada/rows.csv", "a home folder"),
        ("rows from /Users/ada/rows.csv", "a home folder"),
        ("login hf_" + "a" * 34, "a token"),
        ("https://ada:secret@example.org/x", "a token"),
        ("it was s3cr3t-of-this-machine", "a token"),
    ],
)
def test_what_is_not_for_others_is_refused_with_its_place(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("EXAMPLE_TOKEN", "s3cr3t-of-this-machine")
    records.write_text(sweep / "report" / "report.md", f"# Report\n\n{text}\n")
    target = tmp_path / "sweep.tar.gz"
    with pytest.raises(PrivacyError) as caught:
        archive(sweep, target, force=True)
    assert f"report/report.md, line 3: {told}" in str(caught.value)
    assert text not in str(caught.value), "the message does not spread it"
    assert not target.exists()


def test_what_is_no_archive_is_told(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_text("no archive")
    with pytest.raises(UserError, match="no archive of a sweep") as caught, opened(str(file)):
        pass
    assert "\n" not in str(caught.value)
    with tarfile.open(file, "w:gz") as tar:
        tar.add(sweep / "report", "report")
    damaged = bytearray(file.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    (tmp_path / "damaged.tar.gz").write_bytes(damaged)
    with (
        pytest.raises(UserError, match="no archive of a sweep that can be read"),
        opened(str(tmp_path / "damaged.tar.gz")),
    ):
        pass
    with pytest.raises(UserError, match="it has 0"), opened(str(file)):
        pass
