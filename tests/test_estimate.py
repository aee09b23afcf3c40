"""What is predicted from config.json alone is what a real run holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from conftest import CPU, PRECISIONS

from bitrank import (
    adapters,
    config,
    data,
    estimate,
    measurement,
    meters,
    models,
    phases,
    stand_ins,
    steps,
    weights,
    workload,
)
from bitrank.estimate import BatchShape
from bitrank.workload import TrainStep

Compose = Callable[..., config.RunConfig]
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
SHORT = BatchShape(rows=2, columns=32, first_target=24, accumulated=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measured_and_predicted(
    run: config.RunConfig, folder: Path, prepared: Path
) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
    """Of each phase, on a real model and its real batches, without the timings of the stage."""
    base = weights.load_base(folder, run.precision, CPU)
    found = {"load": phases.meter_loaded(base)}
    tokenizer = models.load_tokenizer(folder)
    rows = data.encode_split(prepared / "train.jsonl", tokenizer, run.data.max_sequence_tokens)
    model = adapters.attach_adapter(base, run.adapter, 0)
    steps.keep_activations(base, run.train)
    drawn = workload.draw_batches(rows, run.train, tokenizer)
    step, widest = TrainStep(model, run.train), workload.find_widest(drawn)
    step(drawn[0])
    found["train"] = phases.meter_step(step, widest)
    found["evaluate"] = phases.meter_evaluation(model, widest.widest_micro)
    if adapters.method_of(model).not_merged is None:
        found["merge"] = phases.meter_merge(model, folder)
    shape = BatchShape.of(widest.widest_micro, widest.widest_micro is not widest.micro[0])
    settings = json.loads((folder / "config.json").read_text())
    expected = estimate.predict_phases(settings, run.precision, run.adapter, run.train, shape)
    return {phase: (memory, expected[phase]) for phase, memory in found.items()}


ONE = "train.global_batch_size=4"  # one micro-batch a step
CASES = [
    *([f"precision={name}", ONE] for name in PRECISIONS),
    ["precision=fp32", "train.gradient_checkpointing=true"],
    ["precision=nf4", "train.gradient_checkpointing=true"],
    ["precision=nf4", "precision.double_quant=false"],
    ["precision=nf4", "adapter.target_modules=[q_proj,v_proj]", "adapter.layers=last 1"],
    ["precision=fp32", "adapter.use_dora=true"],
    ["precision=fp32", "adapter=full", ONE],
    ["precision=fp32", "train.optimizer=adamw_8bit", "adapter.rank=32", ONE],
    *([f"adapter={method}", "precision=fp32", ONE] for method in ("pissa", "olora")),
    *([f"adapter={method}", f"precision={precision}", ONE]
      for method in ("ia3", "vera", "oft", "bottleneck", "prompt_tuning", "p_tuning")
      for precision in ("fp32", "int8", "nf4")),
]  # fmt: skip


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_the_prediction_is_within_two_percent(
    overrides: list[str],
    original: Path,
    prepared: Path,
    compose: Compose,
    tmp_path: Path,
) -> None:
    run = compose(*overrides)
    folder = tmp_path / "base"
    base = weights.quantize_model(original, run.precision, CPU)
    models.save_model(base, models.load_tokenizer(original), folder)
    for phase, (memory, expected) in measured_and_predicted(run, folder, prepared).items():
        error = phases.beside_prediction(memory, expected)["prediction_error"]
        # How transformers dequantizes 8 bits is not modelled, and a tiny layer shows all of it.
        most = 0.1 if phase == "merge" and run.precision.quant_type == "int8" else 0.02
        assert abs(error) < most, (phase, memory, expected)
        for part in ("weights_bytes", "adapter_bytes", "optimizer_bytes"):
            if part in memory:
                assert memory[part] == expected[part], (phase, part)


@pytest.mark.parametrize("size", [(64, 128), (96, 80), (1000, 24)])
@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("double", [True, False])
def test_a_stand_in_holds_the_bytes_of_the_real_layer(
    name: str, size: tuple[int, int], double: bool, compose: Compose
) -> None:
    if name == "int8":
        precision = compose("precision=int8").precision
        real: torch.nn.Module = Linear8bitLt(*size, bias=False, has_fp16_weights=False)
    else:
        given = f"precision.double_quant={str(double).lower()}"
        precision = compose(f"precision={name}", given).precision
        real = Linear4bit(*size, bias=False, quant_type=name, compress_statistics=double)
    real = real.to("cpu")
    if name == "int8":
        real(torch.zeros(1, size[0]))  # which quantizes on a CPU
    stand_in = torch.nn.Linear(*size, bias=False, device=stand_ins.META)
    stand_ins.QuantizedLayer.take_the_place_of(stand_in, precision)

    def held(layer: torch.nn.Module) -> int:
        meter = meters.TensorMeter()
        meter.register("weights", meters.reachable_tensors(layer))
        return meter.live_bytes

    assert held(stand_in) == held(real)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_state_of_the_optimizer_is_what_it_holds(optimizer: str, compose: Compose) -> None:
    run = compose(f"train.optimizer={optimizer}")
    model = torch.nn.Sequential(torch.nn.Linear(100, 70), torch.nn.Linear(70, 3))
    made = steps.make_optimizer(model, run.train)
    model(torch.ones(2, 100)).sum().backward()
    made.step()
    meter = meters.TensorMeter()
    meter.register("optimizer", meters.reachable_tensors(made.state))
    assert estimate.optimizer_bytes(list(model.parameters()), optimizer) == meter.live_bytes


def test_eight_billion_parameters_need_no_memory(compose: Compose) -> None:
    """The published 4.127 bits a weight of the layers, and 16 bits for both ends."""
    run = compose("precision=nf4", "precision.weight_dtype=bfloat16",
                  "precision.compute_dtype=bfloat16")  # fmt: skip
    found = estimate.predict_phases(LLAMA_8B, run.precision, run.adapter, run.train, SHORT)
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    ends = 2 * 128256 * 4096
    expected = linear * 4.127 / 8 + 2 * ends
    assert found["load"]["peak_bytes"] == pytest.approx(expected, rel=1e-3)
    # The second copy's codes wait for the collector; three fp32 copies of the largest layer.
    merged = expected + 2 * linear + 3 * 4 * 4096 * 14336
    assert found["merge"]["merged_bytes"] == pytest.approx(merged, rel=1e-3)
    assert found["train"]["peak_bytes"] > found["load"]["peak_bytes"]


def test_attention_keeps_no_scores(compose: Compose) -> None:
    run = compose("precision=fp32")
    settings = {**LLAMA_8B, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip

    def kept(columns: int) -> int:
        shape = BatchShape(rows=1, columns=columns, first_target=1, accumulated=False)
        found = estimate.predict_step(settings, run.precision, run.adapter, run.train, shape)
        return found["activations_bytes"]

    assert kept(2049) < 2.1 * kept(1025)


def test_gradients_of_an_earlier_micro_batch_are_there(compose: Compose) -> None:
    run = compose("precision=fp32", "adapter=full")
    settings = {**LLAMA_8B, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
    first, later = (
        estimate.predict_step(
            settings, run.precision, run.adapter, run.train,
            BatchShape(rows=8, columns=128, first_target=1, accumulated=accumulated),
        )
        for accumulated in (False, True)
    )  # fmt: skip
    buffers = 2 * 4 * 8  # rotary frequencies of half a head, kept twice
    assert later["gradients_bytes"] == later["weights_bytes"] - buffers
    assert first["gradients_bytes"] < later["gradients_bytes"]
    assert first["peak_bytes"] < later["peak_bytes"]


@pytest.mark.parametrize(
    ("settings", "overrides", "reason"),
    [
        ({"model_type": "no-such-model"}, [], "no-such-model"),
        ({"hidden_size": 8}, [], "names no `model_type`"),
        (LLAMA_8B, ["adapter.use_dora=true"], "DoRA of a quantized base"),
    ],
)
def test_what_cannot_be_predicted_is_said(
    settings: dict[str, Any], overrides: list[str], reason: str, compose: Compose
) -> None:
    run = compose("precision=nf4", *overrides)
    with pytest.raises(estimate.PredictionError, match=reason):
        estimate.predict_phases(settings, run.precision, run.adapter, run.train, SHORT)


def test_a_measurement_without_a_prediction_tells_why(
    compose: Compose,
    quantized: Callable[[str], Path],
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meters, "measure_ceiling", lambda *_: 1e9)
    run = compose("precision=nf4", "adapter.use_dora=true")
    record = measurement.measure_training_and_inference(
        run.measure, run.train, run.adapter, run.precision, run.runtime,
        run.data.max_sequence_tokens, quantized("nf4"), prepared,
    )  # fmt: skip
    assert "DoRA" in record.result["prediction"]["why_not"]
    assert record.result["train_memory"]["predicted"] is None
    assert record.result["train_memory"]["prediction_error"] is None
    assert record.result["train_memory"]["peak_bytes"] > 0
