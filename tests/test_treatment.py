"""The proof of treatment is read from live models, the same at every stage, and catches lies."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, PRECISIONS, stamp_base
from evaluated import RUNTIME, configured
from transformers import PreTrainedModel

from bitrank import (
    adapters,
    config,
    evaluation,
    measurement,
    meters,
    models,
    paths,
    records,
    treatment,
    weights,
)
from bitrank.errors import UserError
from bitrank.projection import flatten, parse_yaml

Compose = Callable[..., config.RunConfig]
Train = Callable[..., records.Record]
LIVE = ("precision", "dtypes", "adapter", "trainable", "gradient_checkpointing", "attention")


@pytest.fixture
def nf4(quantized: Callable[[str], Path]) -> PreTrainedModel:
    return models.load_model(quantized("nf4"), CPU)


def refused(model: PreTrainedModel, run: config.RunConfig) -> str:
    with pytest.raises(UserError) as raised:
        weights.check_precision(model, run.precision)
    return str(raised.value)


def test_one_module_that_was_left_alone_is_named(nf4: PreTrainedModel, compose: Compose) -> None:
    block = nf4.model.layers[1].mlp
    block.up_proj = torch.nn.Linear(64, 128, bias=False)
    told = refused(nf4, compose("precision=nf4"))
    held = "model.layers.1.mlp.up_proj is held as quant_type none, configured is quant_type nf4"
    assert held in told
    assert "dvc repro quantize" in told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("precision.block_size=128", "held as block_size 64, configured is block_size 128"),
        ("precision.double_quant=false", "double_quant True, configured is double_quant False"),
        ("precision.quant_storage=float32", "quant_storage uint8, configured is quant_storage fl"),
        ("precision.compute_dtype=bfloat16", "compute_dtype float32, configured is compute_dtype"),
        ("precision=fp4", "held as quant_type nf4, configured is quant_type fp4"),
        ("precision=fp32", "held as quant_type nf4, configured is quant_type none"),
    ],
)
def test_what_differs_from_the_configuration_is_told_with_the_module(
    nf4: PreTrainedModel, compose: Compose, override: str, told: str
) -> None:
    precision = "precision=nf4" if "." in override else override
    found = refused(nf4, compose(precision, *([override] if "." in override else [])))
    assert "model.layers.0.self_attn.q_proj is held as" in found
    assert told in found


def test_one_block_of_another_size_is_named(
    nf4: PreTrainedModel, original: Path, compose: Compose
) -> None:
    other = models.load_model(original, CPU)
    run = compose("precision=nf4", "precision.block_size=32")
    kept = nf4.model.layers[1].self_attn.o_proj.weight
    weights.set_block_size(nf4, other, run.precision)
    weights.check_precision(nf4, run.precision)
    nf4.model.layers[1].self_attn.o_proj.weight = kept
    told = refused(nf4, run)
    assert "model.layers.1.self_attn.o_proj is held as block_size 64, configured is" in told


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_embeddings_and_output_layer_must_be_of_the_configured_type(
    name: str, nf4: PreTrainedModel, compose: Compose
) -> None:
    (module,) = (found for where, found in nf4.named_modules() if where.endswith(name))
    module.to(torch.bfloat16)
    told = refused(nf4, compose("precision=nf4"))
    assert f"{name} is held as weight_dtype bfloat16, configured is weight_dtype float32" in told


@pytest.mark.parametrize("name", PRECISIONS)
def test_types_and_trainable_names_are_those_of_the_model(
    name: str, quantized: Callable[[str], Path], compose: Compose
) -> None:
    run = compose(f"precision={name}")
    base = models.load_model(quantized(name), CPU)
    assert treatment.describe(base)["adapter"] is None
    assert treatment.describe(base)["trainable"]["num_tensors"] == 0
    assert treatment.describe(base)["trainable"]["names_hash"] is None
    model = adapters.attach_adapter(base, run.adapter, 0)
    found = treatment.describe(model, run.precision, run.adapter)
    assert found["precision"]["name"] == name
    assert found["dtypes"] == {
        "adapter": ["float32"], "norms": ["float32"], "embeddings": ["float32"],
        "head": ["float32"], "head_is_embeddings": False,
    }  # fmt: skip
    trained = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
    assert found["trainable"]["num_tensors"] == len(trained) == 2 * 7 * 2
    assert len(found["trainable"]["names"]) == 7 * 2
    assert all(".*." in pattern and "lora_" in pattern for pattern in found["trainable"]["names"])
    assert found["trainable"]["num_parameters"] == found["adapter"]["num_trainable_parameters"]
    model.base_model.model.model.norm.to(torch.bfloat16)
    model.base_model.model.lm_head.requires_grad_(True)
    changed = treatment.describe(model)
    assert changed["dtypes"]["norms"] == ["bfloat16", "float32"]
    assert changed["trainable"]["names_hash"] != found["trainable"]["names_hash"]
    assert any("lm_head" in pattern for pattern in changed["trainable"]["names"])


def test_checkpointing_is_told_from_the_model(train: Train) -> None:
    """Its activations are computed anew, and the record says so; nothing else is another."""
    plain, again = (
        train("precision=nf4", f"train.gradient_checkpointing={on}").treatment
        for on in ("false", "true")
    )
    assert (plain["gradient_checkpointing"], again["gradient_checkpointing"]) == (False, True)
    assert {key for key in plain if plain[key] != again[key]} == {"gradient_checkpointing"}


def test_train_measure_and_evaluate_tell_the_same_in_the_same_words(
    project: Path, prepared: Path, quantized: Callable[[str], Path], compose: Compose, train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(meters, "measure_ceiling", lambda *_: 1e9)
    run = compose("precision=nf4")
    trained = train("precision=nf4", folder="trained").treatment
    measured = measurement.measure_training_and_inference(
        run.measure, run.train, run.adapter, run.precision, run.runtime,
        run.data.max_sequence_tokens, quantized("nf4"), prepared,
    ).treatment  # fmt: skip
    for key in (*LIVE, "base_hash", "original_hash", "data_hash", "template_hash"):
        assert trained[key] == measured[key], key
    assert trained["planned_steps"] == trained["num_steps"]
    assert measured["determinism"] == trained["determinism"]
    evaluated = evaluation.evaluate_model("adapter", configured(), RUNTIME).treatment
    assert {*LIVE, "determinism", "stopped_at_step"} <= {*evaluated}
    assert evaluated["dtypes"] == trained["dtypes"]
    held = {**evaluated["precision"], "name": "nf4"}
    assert held == trained["precision"], "as it is held, though it is computed on dequantized"
    assert evaluated["computed_on"] == "dequantized weights"
    live = {key: evaluated["adapter"][key] for key in ("rank", "scaling", "num_adapted_layers")}
    assert live == {key: trained["adapter"][key] for key in live}
    assert evaluated["trainable"]["num_tensors"] == 0


def test_an_evaluation_refuses_a_base_that_is_not_quantized_as_stamped(
    project: Path, original: Path, quantized: Callable[[str], Path], compose: Compose
) -> None:
    """Whole and stamped, but with another block size than the stamp says."""
    precision = dataclasses.replace(compose("precision=nf4").precision, block_size=128)
    paths.QUANTIZED.unlink()
    shutil.copytree(quantized("nf4"), paths.QUANTIZED)
    stamp_base(paths.QUANTIZED, original, precision)
    with pytest.raises(UserError, match=r"q_proj is held as block_size 64, configured is block"):
        evaluation.evaluate_model("quantized", configured(), RUNTIME)


def shape_of(model: Any) -> dict[str, Any]:
    """All that a person could ask of a live model, besides how its linear layers are held."""
    base = model.get_base_model()
    linear = {layer.weight for layer in weights.linear_layers(base).values()}
    return {
        "types of modules": {
            name: type(module).__name__
            for name, module in model.named_modules()
            if not name.endswith("base_layer") and not hasattr(module, "base_layer")
        },
        "parameters": {
            name: (tuple(p.shape), p.dtype, p.requires_grad, p.detach().sum().item())
            for name, p in model.named_parameters()
            if not any(p is weight for weight in linear)
        },
        "frozen": [any(weight.requires_grad for weight in linear)],
        "training": {name: module.training for name, module in model.named_modules()},
        "scaling": [layer.scaling for _, layer in adapters.adapted_layers(model)],
        "dropout": [str(layer.lora_dropout) for _, layer in adapters.adapted_layers(model)],
        "checkpointing": base.is_activation_checkpointing,
        "attention": base.config._attn_implementation,
        "cache": base.config.use_cache,
    }


def test_lora_and_qlora_differ_in_nothing_but_the_precision_of_the_base(
    original: Path, quantized: Callable[[str], Path], compose: Compose
) -> None:
    """The presets, composed; then the models that training begins with, looked at live."""
    from bitrank import composition, steps

    texts = [
        composition.compose_text([f"precision={name}"], Path(__file__).parents[1] / "conf")
        for name in ("fp32", "nf4")
    ]
    one, other = (flatten(parse_yaml(text)) for text in texts)
    differing = {key for key in one if one[key] != other.get(key)} | (other.keys() - one.keys())
    assert differing == {
        f"precision.{key}"
        for key in ("name", "quant_type", "double_quant", "block_size", "quant_storage")
    }
    live = []
    for name in ("fp32", "nf4"):
        run = compose(f"precision={name}")
        base = weights.load_base(quantized(name), run.precision, CPU)
        model = adapters.attach_adapter(base, run.adapter, run.seeds.init)
        steps.keep_activations(base, run.train)
        groups = steps.make_optimizer(model, run.train).param_groups
        told = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        live.append((shape_of(model), told, treatment.describe(model)))
    for first, second in zip(live[0][:2], live[1][:2], strict=True):
        assert first == second
    assert {key for key in LIVE if live[0][2][key] != live[1][2][key]} == {"precision"}
    counts = [found["precision"]["num_quantized_layers"] for _, _, found in live]
    assert counts == [0, 14]
