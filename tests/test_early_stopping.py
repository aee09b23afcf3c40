"""Training stops when validation no longer improves, and the best weights are those kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitrank import adapters, config, early_stopping, identity, models, records, stage, training
from bitrank.checkpoints import Checkpoints
from bitrank.trainer import AdapterTrainer

Train = Callable[..., records.Record]


@pytest.fixture
def train(train: Train) -> Train:
    """Validated after every step, on a plain base."""
    return lambda *overrides: train("precision=fp32", "train.validation_steps=1", *overrides)


def kept_model(base: Path, folder: Path) -> torch.nn.Module:
    loaded = models.load_model(base, torch.device("cpu"))
    return adapters.load_adapter(loaded, folder / "adapter", identity.hash_weights(base))


def validation_loss(
    model: torch.nn.Module, prepared: Path, compose: Callable[..., config.RunConfig]
) -> float:
    tokenizer = models.load_tokenizer(model.base_model.model.config._name_or_path)
    run = compose()
    rows = training._encode(prepared, tokenizer, run.data.max_sequence_tokens)
    trainer = AdapterTrainer(
        model, tokenizer, rows, run.train, run.seeds, run.runtime, Checkpoints({}, prepared)
    )
    trainer.validate(0)
    return float(trainer.validations[0]["loss"])


def test_it_stops_after_the_patience_and_keeps_the_best(
    train: Train, quantized: Callable[[str], Path], prepared: Path,
    compose: Callable[..., config.RunConfig], tmp_path: Path,
) -> None:  # fmt: skip
    """A rate this high is good for a few steps and does harm after them."""
    options = ("train.epochs=4", "train.learning_rate=0.3", "train.schedule=constant")
    stopped = train(*options, "train.early_stopping_patience=2")
    losses = [validation["loss"] for validation in stopped.result["validation"]]
    best = losses.index(min(losses))
    assert stopped.result["kept_step"] == best == len(losses) - 3
    assert stopped.treatment["num_steps"] == len(losses) - 1 < 24
    assert stopped.treatment["early_stopping"] == "after 2 validations without a lower loss"
    kept = identity.hash_weights(tmp_path / "adapter")
    assert kept == stopped.result["adapter_hash"]
    assert validation_loss(kept_model(quantized("fp32"), tmp_path), prepared, compose) == min(
        losses
    )
    whole = train(*options)
    assert whole.result["adapter_hash"] != kept
    assert whole.result["kept_step"] == whole.treatment["num_steps"] == 24
    assert whole.result["losses"][: len(losses) - 1] == stopped.result["losses"]


def test_while_the_loss_falls_it_changes_nothing(train: Train) -> None:
    plain = train("train.epochs=2")
    patient = train("train.epochs=2", "train.early_stopping_patience=20")
    losses = [validation["loss"] for validation in plain.result["validation"]]
    assert losses[-1] == min(losses), "choose a rate at which the last loss is the lowest"
    assert patient.result == plain.result


def test_a_disk_without_room_for_the_best_weights_is_told_in_one_line(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(early_stopping, "_file", lambda _: Path("/dev/full"))
    with pytest.raises(SystemExit) as ended:
        stage.execute(lambda: train("train.early_stopping_patience=2"), tmp_path / "train.json")
    assert ended.value.code == 1
    assert "error: No space left on device: " in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "train.json").exists()
