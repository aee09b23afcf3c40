"""Full fine-tuning goes through the same stages, and is told as what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CPU, ROOT

from bitrank import (
    adapters,
    chain,
    composition,
    config,
    identity,
    measurement,
    merging,
    models,
    records,
    training,
    weights,
)
from bitrank.errors import ConfigError

FULL = ("adapter=full", "precision=fp32", "train.learning_rate=1e-3")
Compose = Callable[..., config.RunConfig]


@pytest.fixture
def trained(
    quantized: Callable[[str], Path], prepared: Path, compose: Compose, tmp_path: Path
) -> records.Record:
    run = compose(*FULL)
    return training.train_adapter(
        run.train, run.adapter, run.precision, run.seeds, run.runtime, run.data.max_sequence_tokens,
        quantized("fp32"), prepared, tmp_path / "adapter",
    )  # fmt: skip


def test_every_weight_is_trained_and_the_record_says_so(
    trained: records.Record, quantized: Callable[[str], Path]
) -> None:
    base = models.load_model(quantized("fp32"), CPU)
    live = trained.treatment["adapter"]
    assert live["method"] == "full"
    assert live["num_frozen_parameters"] == 0
    assert live["num_trainable_parameters"] == weights.count_weights(base)
    assert trained.result["trainable_share"] == 1
    assert trained.result["first_weights_hash"] is None
    assert trained.result["validation"][-1]["loss"] < trained.result["validation"][0]["loss"]


def test_the_merged_model_is_the_trained_model(
    trained: records.Record, quantized: Callable[[str], Path], original: Path, prepared: Path,
    compose: Compose, tmp_path: Path,
) -> None:  # fmt: skip
    run = compose(*FULL)
    record = merging.merge_adapter(
        run.merge, run.runtime, quantized("fp32"), original, tmp_path / "adapter", prepared,
        tmp_path / "merged",
    )  # fmt: skip
    assert record.result["check"]["largest_logit_difference"] == 0
    base = models.load_model(quantized("fp32"), CPU)
    before = {name: p.clone() for name, p in base.named_parameters()}
    tuned = adapters.load_adapter(
        base, tmp_path / "adapter", identity.hash_weights(quantized("fp32"))
    )
    merged = dict(models.load_model(tmp_path / "merged", CPU).named_parameters())
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, merged[name])
        assert not torch.equal(parameter, before[name]), name
        assert not parameter.requires_grad


def test_a_tied_weight_is_saved_once_and_stays_tied(
    original: Path, compose: Compose, tmp_path: Path
) -> None:
    def tied() -> torch.nn.Module:
        model = models.load_model(original, CPU)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        return model

    tuned = adapters.attach_adapter(tied(), compose(*FULL).adapter, 0)
    tuned.get_input_embeddings().weight.data += 1
    adapters.save_adapter(tuned, tmp_path, chain.Stamp(base_hash="b", data_hash="d"))
    loaded = adapters.load_adapter(tied(), tmp_path, "b")
    assert torch.equal(loaded.get_output_embeddings().weight, tuned.get_input_embeddings().weight)


def test_its_memory_is_that_of_four_copies_of_the_weights(
    quantized: Callable[[str], Path], prepared: Path, compose: Compose, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(measurement.meters, "measure_ceiling", lambda *_: 1e9)
    run = compose(*FULL)
    record = measurement.measure_training_and_inference(
        run.measure, run.train, run.adapter, run.precision, run.runtime,
        run.data.max_sequence_tokens, quantized("fp32"), prepared,
    )  # fmt: skip
    memory = record.result["train_memory"]
    trained = 4 * record.treatment["adapter"]["num_trainable_parameters"]
    assert memory["adapter_bytes"] == 0
    assert trained <= memory["weights_bytes"] < 1.01 * trained
    assert 2 * trained <= memory["optimizer_bytes"] < 2.01 * trained


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=full"], "`adapter.method` full trains every weight, which nf4 weights cannot"),
        (["adapter=full", "precision=int8"], "which int8 weights cannot be: add precision=fp32"),
        (
            ["adapter=full", "precision=fp32", "merge=original"],
            "`merge.base` must be dequantized: full fine-tuning has no update to add",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_composition(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composition.compose_text(overrides, ROOT / "conf")
