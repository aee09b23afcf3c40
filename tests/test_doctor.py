"""What the doctor finds is tried, not looked up."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from fake_project import ROOT

from bitrank import doctor, weights
from bitrank.errors import ConfigError, UserError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "conf" / "precision", tmp_path / "conf" / "precision")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_configured_precision_and_bf16_is_tried(project: Path) -> None:
    threads = torch.get_num_threads()
    found = {finding.name: finding for finding in doctor.examine()}
    tried = {"fp32", "int8", "fp4", "nf4", "nf4, bf16 compute", "fp4, bf16 compute"}
    assert tried <= set(found)
    assert " ms" in found["fp32"].detail
    assert all("times the time of fp32" in found[name].detail for name in tried - {"fp32"})
    assert found["cpu"].status == "ok"
    assert found["dvc cache"].status == "unknown"
    assert torch.get_num_threads() == threads


def test_a_kernel_that_fails_is_a_finding_with_its_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = weights.quantize_model

    def refuse_int8(folder, precision, device):  # type: ignore[no-untyped-def]
        if precision.quant_type == "int8":
            raise RuntimeError("no kernel for int8\nsecond line")
        return quantize(folder, precision, device)

    monkeypatch.setattr(weights, "quantize_model", refuse_int8)
    found = {finding.name: finding for finding in doctor._precisions()}
    assert found["int8"].status == "no"
    assert found["int8"].detail == "not possible here: no kernel for int8"
    assert found["nf4"].status != "no"


@pytest.mark.parametrize(
    ("seconds", "status"), [(1.0, "ok"), (doctor.SLOW + 1, "slow"), (doctor.UNUSABLE + 1, "no")]
)
def test_a_precision_is_judged_by_its_training_step(
    project: Path, original: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, status: str
) -> None:
    took = doctor.Timing(forward=1.0, step=seconds)
    monkeypatch.setattr(doctor, "_time_layer", lambda *_: took)
    precision = doctor.read_precisions(doctor.PRECISIONS)[0][1]
    baseline = doctor.Timing(forward=1.0, step=1.0)
    finding, _ = doctor._probe("nf4", precision, original, torch.device("cpu"), baseline)
    assert finding.status == status


def test_precisions_come_from_conf_with_fp32_first(project: Path) -> None:
    nf4 = (project / "conf/precision/nf4.yaml").read_text()
    (project / "conf/precision/aaa.yaml").write_text(
        nf4.replace("block_size: 64", "block_size: 128")
    )
    names = [name for name, _ in doctor.read_precisions(doctor.PRECISIONS)]
    assert names[:2] == ["fp32", "aaa"]
    (project / "conf/precision/bad.yaml").write_text("name: bad\n")
    with pytest.raises(ConfigError, match="quant_type"):
        doctor.read_precisions(doctor.PRECISIONS)
    with pytest.raises(UserError, match=r"fp32\.yaml does not exist"):
        doctor.read_precisions(Path("nowhere"))


def test_links_are_made_and_removed(tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    found = doctor.find_links(data, cache / "files" / "md5")
    assert found["symlink"]
    assert set(found) == {"reflink", "hardlink", "symlink"}
    assert os.listdir(tmp_path) == ["data"]
    assert os.listdir(data) == []


def test_only_copies_is_called_slow(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".dvc").mkdir()
    monkeypatch.setattr(doctor, "find_links", lambda *_: {"reflink": False, "hardlink": False})
    finding = next(f for f in doctor._disk() if f.name == "dvc cache")
    assert (finding.status, "stored twice" in finding.detail) == ("slow", True)


def test_the_cache_may_lie_elsewhere(tmp_path: Path) -> None:
    assert doctor.cache_folder(tmp_path) == tmp_path / "cache"
    (tmp_path / "config").write_text("[core]\n    analytics = false\n[cache]\n    dir = /shared\n")
    assert doctor.cache_folder(tmp_path) == Path("/shared")
    (tmp_path / "config.local").write_text(
        "['remote \"x\"']\n    url = y\n[cache]\n    dir = own\n"
    )
    assert doctor.cache_folder(tmp_path) == tmp_path / "own"


def test_versions_are_compared_with_the_constraints(project: Path) -> None:
    numpy, torch_version = metadata.version("numpy"), torch.__version__.split("+")[0]
    text = f"# pinned\nnumpy=={numpy}  # here\ntorch=={torch_version}\nnot-installed-here==1\n"
    assert doctor.compare_versions(text) == (2, [])
    assert doctor.compare_versions("numpy==0.1\n") == (1, [f"numpy is {numpy}, not 0.1"])
    (project / "constraints.txt").write_text("numpy==0.1\n")
    found = [(finding.status, finding.detail) for finding in doctor._packages()]
    assert found[0] == ("no", f"constraints.txt: numpy is {numpy}, not 0.1")
    assert found[1] == ("unknown", "constraints-numeric.txt does not exist")
