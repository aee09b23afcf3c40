"""The scripts that need no rows: they run at a tiny size, and without what orchestrates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import llama_step
import memory_curve
import synthetic

NOT_INSTALLED = ("dvc", "hydra", "mlflow", "lm_eval", "datasets", "typer", "gguf")


def written(folder: Path, name: str) -> dict[str, object]:
    (file,) = folder.glob(f"{name}-*.json")
    found: dict[str, object] = json.loads(file.read_text())
    return found


def test_memory_is_predicted_for_each_batch_and_way_of_going_back(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory_curve.main([
        "--base", str(original), "--tokens", "32", "128", "--columns", "32", "--threads", "1",
        "--results", str(tmp_path),
    ])  # fmt: skip
    record = written(tmp_path, "memory_curve")
    cells = record["cells"]
    assert isinstance(cells, list)
    assert len(cells) == 8
    peaks = {(c["precision"], c["tokens"], c["checkpointing"]): c["peak_bytes"] for c in cells}
    for tokens in (32, 128):
        for checkpointing in (False, True):
            assert peaks["nf4", tokens, checkpointing] < peaks["fp32", tokens, checkpointing]
    for name in ("fp32", "nf4"):
        assert peaks[name, 128, True] < peaks[name, 128, False]
        assert peaks[name, 32, False] < peaks[name, 128, False]
    assert record["largest_error"] < memory_curve.AIM
    assert "| 128    | yes" in capsys.readouterr().out


def test_a_row_is_trained_at_its_end_only() -> None:
    batch = synthetic.make_batch(3, 10, 4, 50)
    assert batch.tokens == {"padded": 30, "non_padding": 30, "supervised": 12}
    labels = batch.micro[0]["labels"]
    assert (labels[:, :6] == -100).all()
    assert (labels[:, 6:] == batch.micro[0]["input_ids"][:, 6:]).all()


def test_a_llama_step_runs_where_nothing_but_the_core_is_installed(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for name in NOT_INSTALLED:
        (missing / name).mkdir(parents=True)
        (missing / name / "__init__.py").write_text(f'raise ImportError("no {name} here")\n')
    path = os.pathsep.join([str(missing), str(ROOT / "src")])
    command = [
        sys.executable, str(ROOT / "benchmarks/llama_step.py"), "--shape", "tiny", "--device",
        "cpu", "--rows", "2", "--columns", "32", "--supervised", "8", "--rank", "4", "--warmup",
        "1", "--steps", "2", "--decode", "2", "--rounds", "1", "--threads", "1", "--results",
        str(tmp_path),
    ]  # fmt: skip
    told = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    record = written(tmp_path, "llama_step")
    contestants = record["contestants"]
    assert isinstance(contestants, dict)
    assert set(contestants) == {"lora", "qlora"}, "a paged optimizer needs CUDA"
    for (found,) in contestants.values():
        assert found["tokens_per_second"] > 0
        assert abs(found["train_memory"]["prediction_error"]) < 0.02
    lora, qlora = (contestants[name][0]["tensor_peak_bytes"] for name in ("lora", "qlora"))
    assert qlora < lora
    assert "unknown" in told.stdout, "the energy"


def test_a_missing_gpu_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        assert llama_step.parse([]).dtype == "bfloat16"
        return
    with pytest.raises(llama_step.UserError, match="no GPU; --device cpu"):
        llama_step.main([])
