"""Two processes on the CPU (gloo) train what one process trains: the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from bitrank import composition, config, identity, records, training
from bitrank.errors import UserError

WORKER = """
import json, os, sys
from pathlib import Path
from bitrank import adapters, config, identity, processes, stage, trainer, training

base, prepared, target = map(Path, sys.argv[1:])
ran = trainer.AdapterTrainer.run

def run(self):
    seconds = ran(self)
    live = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
    seen = {"weights": identity.hash_json([[n, identity.hash_tensor(p)] for n, p in live.items()]),
            "saved": target.exists(), "losses": self.losses, "tokens": dict(self.tokens)}
    Path(f"rank-{processes.rank()}.json").write_text(json.dumps(seen))
    return seconds

trainer.AdapterTrainer.run = run
r = config.load()
stage.execute(lambda: training.train_adapter(
    r.train, r.adapter, r.precision, r.seeds, r.runtime, r.data.max_sequence_tokens,
    base, prepared, target,
), Path("train.json"))
"""
OPTIONS = ("precision=nf4", "train.epochs=2", "adapter.dropout=0", "train.micro_batch_size=4")


def launch(
    folder: Path, base: Path, prepared: Path, *overrides: str
) -> subprocess.CompletedProcess[str]:
    """Two processes, started as `accelerate launch` starts them for GPUs: by torch's launcher."""
    folder.mkdir()
    text = composition.compose_text(["experiment=smoke", *OPTIONS, *overrides], ROOT / "conf")
    (folder / "params.yaml").write_text(text)
    (folder / "worker.py").write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "worker.py", str(base),
         str(prepared), str(folder / "adapter")],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture
def alone(
    quantized: Callable[[str], Path], prepared: Path, compose: Callable[..., config.RunConfig],
    tmp_path: Path,
) -> Callable[..., records.Record]:  # fmt: skip
    def trained(*overrides: str) -> records.Record:
        run = compose(*OPTIONS, *overrides)
        return training.train_adapter(
            run.train, run.adapter, run.precision, run.seeds, run.runtime,
            run.data.max_sequence_tokens, quantized("nf4"), prepared, tmp_path / "alone",
        )  # fmt: skip

    return trained


def test_two_processes_train_what_one_trains(
    alone: Callable[..., records.Record], quantized: Callable[[str], Path], prepared: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "two"
    ran = launch(folder, quantized("nf4"), prepared)
    assert ran.returncode == 0, ran.stderr
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["weights"] == ranks[1]["weights"], "the same adapter on both"
    assert ranks[0]["losses"] == ranks[1]["losses"]
    record = records.read_record(folder / "train.json")
    treatment, result = record.treatment, record.result
    assert treatment["num_processes"] == 2
    assert treatment["global_batch_size"] == 8
    assert treatment["gradient_accumulation_steps"] == 1
    assert result["adapter_hash"] == identity.hash_weights(folder / "adapter")
    one = alone()
    assert one.treatment["num_processes"] == 1
    assert one.treatment["gradient_accumulation_steps"] == 2
    assert one.treatment["num_steps"] == treatment["num_steps"] == 12
    assert result["tokens"] == one.result["tokens"], "counted over both"
    assert result["first_weights_hash"] == one.result["first_weights_hash"]
    for key in ("losses", "validation"):
        found = [step["loss"] for step in result[key]]
        assert found == pytest.approx([step["loss"] for step in one.result[key]], rel=1e-3), key


def test_a_global_batch_that_two_cannot_share_is_refused(
    quantized: Callable[[str], Path], prepared: Path, tmp_path: Path
) -> None:
    ran = launch(tmp_path / "two", quantized("nf4"), prepared, "train.global_batch_size=12")
    assert ran.returncode != 0
    assert "error: `train.global_batch_size` is 12, which 2 processes of" in ran.stderr
    assert "make it a multiple of 8" in ran.stderr
    assert not (tmp_path / "two" / "adapter").exists()


def test_alone_the_batch_is_what_one_process_can_share(
    alone: Callable[..., records.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.processes, "count", lambda: 3)
    with pytest.raises(UserError, match=r"which 3 processes of `train.micro_batch_size` 4 cannot"):
        alone()
