"""One optimizer for training and measuring; checkpointing changes memory and no loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CPU

from bitrank import adapters, config, measurement, models, records, steps
from bitrank.errors import UserError

Compose = Callable[..., config.RunConfig]
Train = Callable[..., records.Record]


def measure(
    run: config.RunConfig, quantized: Callable[[str], Path], prepared: Path
) -> records.Record:
    return measurement.measure_training_and_inference(
        run.measure, run.train, run.adapter, run.precision, run.runtime,
        run.data.max_sequence_tokens, quantized(run.precision.name), prepared,
    )  # fmt: skip


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measurement.meters, "measure_ceiling", lambda *_: 1e9)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_gives_the_same_bits(train: Train, dropout: float) -> None:
    kept, anew = (
        train("precision=fp32", f"adapter.dropout={dropout}", f"train.gradient_checkpointing={on}")
        for on in ("false", "true")
    )
    assert anew.treatment["gradient_checkpointing"] is True
    assert kept.treatment["gradient_checkpointing"] is False
    assert anew.result == kept.result


@pytest.mark.usefixtures("_quick")
def test_checkpointing_holds_fewer_activations_in_measure_too(
    quantized: Callable[[str], Path], prepared: Path, compose: Compose
) -> None:
    kept, anew = (
        measure(compose("precision=nf4", f"train.gradient_checkpointing={on}"), quantized, prepared)
        for on in ("false", "true")
    )
    assert anew.treatment["gradient_checkpointing"] is True
    before, after = (record.result["train_memory"] for record in (kept, anew))
    assert after["activations_bytes"] < 0.8 * before["activations_bytes"]
    assert after["weights_bytes"] == before["weights_bytes"]


def test_nothing_is_computed_below_the_lowest_adapter(
    quantized: Callable[[str], Path], compose: Compose
) -> None:
    """Not even with checkpointing, for which transformers lets the embeddings ask for gradients."""
    run = compose("adapter.layers=last 1", "train.gradient_checkpointing=true")
    base = models.load_model(quantized("fp32"), CPU)
    model = adapters.attach_adapter(base, run.adapter, 0).train()
    steps.keep_activations(base, run.train)
    assert model(torch.arange(8).unsqueeze(0), output_hidden_states=True).logits.requires_grad
    assert not base.get_input_embeddings()(torch.arange(8)).requires_grad


@pytest.mark.usefixtures("_quick")
def test_eight_bit_state_trains_and_is_smaller(
    train: Train, quantized: Callable[[str], Path], prepared: Path, compose: Compose
) -> None:
    # A tensor of fewer than 4,096 elements keeps 32 bits: at rank 64 the adapter's have as many.
    options = ("precision=nf4", "adapter.rank=32", "adapter.target_modules=[gate_proj,up_proj]")
    plain = train(*options, "train.epochs=3")
    small = train(*options, "train.epochs=3", "train.optimizer=adamw_8bit")
    assert small.treatment["optimizer"]["name"] == "AdamW8bit"
    assert plain.treatment["optimizer"]["name"] == "AdamW"
    first, last = (small.result["validation"][i]["loss"] for i in (0, -1))
    assert last < first
    assert small.result["losses"][0] == plain.result["losses"][0]
    assert small.result["losses"][-1]["loss"] == pytest.approx(
        plain.result["losses"][-1]["loss"], rel=0.1
    )
    sizes = {
        name: measure(compose(*options, f"train.optimizer={name}"), quantized, prepared)
        .result["train_memory"]["optimizer_bytes"]
        for name in ("adamw", "adamw_8bit")
    }  # fmt: skip
    assert sizes["adamw_8bit"] < 0.8 * sizes["adamw"]


def test_a_paged_optimizer_needs_cuda(compose: Compose, original: Path) -> None:
    run = compose("runtime.device=cuda", "train.optimizer=paged_adamw_32bit")
    model = adapters.attach_adapter(models.load_model(original, CPU), run.adapter, 0)
    with pytest.raises(UserError, match=r"`train.optimizer` paged_adamw_32bit needs CUDA.* cpu"):
        steps.make_optimizer(model, run.train)


def test_norms_biases_and_lengths_are_spared_by_weight_decay(
    compose: Compose, original: Path
) -> None:
    run = compose("adapter.use_dora=true", "train.weight_decay=0.1")
    model = adapters.attach_adapter(models.load_model(original, CPU), run.adapter, 0)
    decayed, spared = steps.make_optimizer(model, run.train).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}
    assert len(spared["params"]) == 14


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "constant"]
)
def test_each_schedule_warms_up_and_runs(name: str, train: Train) -> None:
    losses = train(f"train.schedule={name}", "train.warmup_steps=2").result["losses"]
    rates = [step["learning_rate"] for step in losses]
    assert rates[0] == 0 < rates[1] < rates[2] == pytest.approx(1e-2)
    if name == "constant":
        assert rates[-1] == rates[2]
    else:
        assert rates[-1] < rates[2]
