"""What `bitrank verify` finds in a sweep of a toy project in git, whole and tampered with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_project import Toy

from bitrank.errors import UserError
from bitrank.identity import hash_file
from bitrank.inspection import Inspection, VerificationError
from bitrank.locks import hash_path
from bitrank.verify import verify


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A project with a sweep of two points and one that failed."""
    toy = Toy(tmp_path_factory.mktemp("toy"))
    toy.commit()
    toy.sweep("adapter.rank=2,4,8", faults="train:nf4-r8-s0:error")
    return toy


@pytest.fixture
def sweep(swept: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its folder, to tamper with; the current directory is the project."""
    (folder,) = (swept.folder / "data" / "sweeps").iterdir()
    monkeypatch.chdir(swept.folder)
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def point_of(sweep: Path, rank: int = 2) -> Path:
    (folder,) = sweep.glob(f"nf4-r{rank}-s0-*")
    return folder


def edit(file: Path, change: Callable[[Any], object]) -> None:
    body = yaml.safe_load(file.read_text())
    change(body)
    file.write_text(json.dumps(body))


def reseal(sweep: Path, rank: int = 2) -> None:
    """Make the hashes of the lock in manifest and outcome those of the lock that is there."""
    folder = point_of(sweep, rank)
    sha256 = hash_file(folder / "dvc.lock")
    edit(folder / "outcome.json", lambda body: body.update(lock_sha256=sha256))
    edit(sweep / "sweep.json", lambda body: [
        point.update(lock_sha256=sha256) for point in body["points"] if point["key"] == folder.name
    ])  # fmt: skip


def told(found: Inspection) -> str:
    return "\n".join(found.tell_faults())


def test_a_sweep_as_it_was_left_has_no_faults(sweep: Path) -> None:
    found = verify(sweep)
    assert told(found) == ""
    found.check()
    assert all(count > 0 for count in found.counts.values())
    assert {"commit and code", "lock files", "code files read by stages"} <= set(found.counts)
    assert found.counts["lock files"] == 2
    assert found.counts["artifacts passed between stages"] > 10
    assert any("nf4-r8" in note and "failed" in note for note in found.notes)


def test_it_needs_no_torch(sweep: Path, swept: Toy) -> None:
    code = (f"import sys; from pathlib import Path; from bitrank.verify import verify;"
            f"verify(Path({str(sweep)!r})); sys.exit('torch' in sys.modules)")  # fmt: skip
    assert swept.run(sys.executable, "-c", code).returncode == 0


def test_the_command_tells_what_was_checked_and_fails_on_faults(sweep: Path, swept: Toy) -> None:
    command = [sys.executable, "-m", "bitrank.cli", "verify", str(sweep)]
    good = swept.run(*command)
    assert good.returncode == 0, good.stdout
    assert "lock files" in good.stdout
    assert "no faults" in good.stdout
    (point_of(sweep) / "dvc.lock").unlink()
    bad = swept.run(*command)
    assert bad.returncode == 1
    assert "dvc.lock: sha256: is missing" in bad.stdout
    assert "Traceback" not in bad.stdout


def test_an_edited_configuration_differs_from_manifest_lock_and_commit(sweep: Path) -> None:
    file = point_of(sweep) / "params.yaml"
    file.write_text(file.read_text().replace("\n  rank: 2\n", "\n  rank: 3\n"))
    found = told(verify(sweep))
    assert "params.yaml: sha256" in found
    assert "params.yaml: adapter.rank" in found or "params.yaml: adapter: " in found
    assert "`rank: 3`, the commit composes `rank: 2`" in found


def test_a_tampered_record_is_not_what_the_lock_names(sweep: Path) -> None:
    file = point_of(sweep) / "results" / "train.json"
    edit(file, lambda body: body["result"].update(adapter_hash="f" * 64))
    found = told(verify(sweep))
    assert f"{point_of(sweep).name}: results/train.json: md5" in found
    assert point_of(sweep, 4).name not in found


def test_a_lock_that_was_edited_is_not_the_manifests(sweep: Path) -> None:
    lock = point_of(sweep) / "dvc.lock"
    lock.write_text(lock.read_text() + "\n")
    assert told(verify(sweep)).count("dvc.lock: sha256") == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["train"].update(cmd="python stages/other.py"), "stages.train.cmd"),
        (lambda s: s.pop("measure"), "stages.measure: is not in the lock"),
        (lambda s: s["train"]["deps"].pop(0), "stages.train.deps: is without"),
        (lambda s: s["train"]["outs"][0].update(md5="0" * 32), "the stage that makes it wrote"),
        (lambda s: s["report"]["outs"][0].update(md5="0" * 32), "report: md5"),
        (
            lambda s: [d.update(md5="0" * 32) for d in s["train"]["deps"] if "run.py" in d["path"]],
            "stages/run.py: is 000000000000 in the lock",
        ),
        (
            lambda s: s["train"]["params"]["params.yaml"]["adapter"].update(rank=5),
            "params.yaml: adapter: train ran with",
        ),
    ],
)
def test_a_lock_with_all_hashes_renewed_still_has_to_be_the_commits(
    sweep: Path, change: Callable[[Any], object], expected: str
) -> None:
    edit(point_of(sweep) / "dvc.lock", lambda body: change(body["stages"]))
    reseal(sweep)
    found = told(verify(sweep))
    assert expected in found
    assert "dvc.lock: sha256" not in found


def test_all_faults_are_told_at_once(sweep: Path) -> None:
    (point_of(sweep, 4) / "outcome.json").unlink()
    (point_of(sweep, 4) / "notes.txt").write_text("mine")
    shutil.copytree(point_of(sweep), sweep / "nf4-r2-s9-000000")
    edit(sweep / "sweep.json", lambda body: body.update(code_hash="1" * 64))
    with pytest.raises(VerificationError, match="4 faults") as caught:
        verify(sweep).check()
    for part in ("outcome.json", "notes.txt", "nf4-r2-s9-000000", "code_hash"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"git_commit": "0" * 40}, "is not in this clone"),
        ({"git_commit": None}, "outside of a git checkout"),
        ({"git_dirty": True}, "changes that were not committed"),
    ],
)
def test_a_commit_that_cannot_be_had_is_one_clear_fault(
    sweep: Path, changes: dict[str, Any], expected: str
) -> None:
    edit(sweep / "sweep.json", lambda body: body.update(changes))
    found = verify(sweep)
    (fault,) = found.tell_faults()
    assert fault.startswith("sweep.json: git_")
    assert expected in fault
    for kind in ("hand-overs between records", "lock files", "records, items and reports kept"):
        assert found.counts[kind] > 0, "the rest is looked at all the same"


def test_a_shallow_clone_is_told_how_to_get_the_rest(
    sweep: Path, swept: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = ["-c", "user.name=Toy", "-c", "user.email=toy@example.org"]
    url = f"file://{swept.folder}"
    for command in (
        ["git", *person, "commit", "-q", "--allow-empty", "-m", "Later"],
        ["git", "clone", "-q", "--depth", "1", url, str(tmp_path / "shallow")],
    ):
        subprocess.run(command, check=True)
    monkeypatch.chdir(tmp_path / "shallow")
    assert "git fetch --unshallow" in told(verify(sweep))


def test_a_project_without_history_says_so(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "no git history here" in told(verify(sweep))


def test_a_sweep_without_a_point_that_is_done_cannot_be_verified(sweep: Path) -> None:
    edit(sweep / "sweep.json", lambda body: [p.update(status="failed") for p in body["points"]])
    with pytest.raises(UserError, match="nothing to verify"):
        verify(sweep)


def test_a_point_without_its_own_report_is_noted_one_with_another_is_a_fault(sweep: Path) -> None:
    (point_of(sweep) / "report" / "hash").write_text("another")
    shutil.rmtree(point_of(sweep, 4) / "report")
    found = verify(sweep)
    assert [fault.split(":")[1].strip() for fault in found.tell_faults()] == ["report"]
    assert sum("without a report" in note for note in found.notes) == 1


def test_code_that_changed_since_changes_nothing(sweep: Path, swept: Toy) -> None:
    file = swept.folder / "stages" / "run.py"
    before = file.read_text()
    file.write_text(before + "# edited\n")
    try:
        assert told(verify(sweep)) == ""
    finally:
        file.write_text(before)


def test_a_commit_with_other_code_is_told_by_file_for_all_points_at_once(
    sweep: Path, swept: Toy
) -> None:
    file = swept.folder / "stages" / "run.py"
    file.write_text(file.read_text() + "# edited\n")
    other = swept.commit()
    subprocess.run(["git", "reset", "-q", "--hard", "HEAD~1"], check=True)
    edit(sweep / "sweep.json", lambda body: body.update(git_commit=other))
    faults = list(verify(sweep).tell_faults())
    assert len(faults) == 2
    assert "sweep.json: code_hash: the sweep ran" in faults[0]
    assert f"{point_of(sweep, 2).name}, " in faults[1], "each point is named"
    assert "dvc.lock: stages/run.py: is " in faults[1]


def test_the_md5_of_a_folder_is_dvcs(sweep: Path, swept: Toy) -> None:
    """DVC's own answer stands in the lock that it wrote."""
    lock = yaml.safe_load((point_of(sweep) / "dvc.lock").read_text())
    (out,) = lock["stages"]["report"]["outs"]
    assert out["md5"].endswith(".dir")
    assert hash_path(point_of(sweep) / "report") == out["md5"]
