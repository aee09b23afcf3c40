"""Layers are chosen by name, group and block; DoRA and rsLoRA merge; the architectures fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

from bitrank import (
    adapters,
    batches,
    chain,
    config,
    identity,
    merging,
    models,
    quantization,
    records,
    training,
    weights,
)
from bitrank.errors import UserError

TOKENS = torch.arange(40).unsqueeze(0)
Compose = Callable[..., config.RunConfig]
SHAPE: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256,
}  # fmt: skip
ARCHITECTURES = {
    "llama": LlamaConfig(
        **SHAPE, intermediate_size=128, num_key_value_heads=2, max_position_embeddings=512
    ),
    "tied llama": LlamaConfig(
        **SHAPE, intermediate_size=128, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
    "qwen2": Qwen2Config(
        **SHAPE, intermediate_size=128, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True,
    ),
    "falcon": FalconConfig(
        **SHAPE, max_position_embeddings=512, multi_query=True, parallel_attn=True, alibi=False,
        bias=False, new_decoder_architecture=False,
    ),
}  # fmt: skip
ENDS = {
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "falcon": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
}


def random_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        ARCHITECTURES[name], attn_implementation=models.ATTENTION
    )
    for parameter in made.parameters():  # biases begin at zero, which would hide a mistake
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return models.frozen(made)


@pytest.fixture
def base(original: Path) -> PreTrainedModel:
    return models.load_model(original, CPU)


def attached(base: PreTrainedModel, run: config.RunConfig) -> list[str]:
    return [
        name for name, _ in adapters.adapted_layers(adapters.attach_adapter(base, run.adapter, 0))
    ]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_architecture_passes_through_all_stages(
    name: str, original: Path, prepared: Path, compose: Compose, tmp_path: Path
) -> None:
    """Quantize to nf4, attach, train two steps, merge: with the classes of the hub's models."""
    run = compose("precision=nf4", "train.global_batch_size=24", "train.micro_batch_size=24")
    source, quantized = tmp_path / "original", tmp_path / "quantized"
    models.save_model(random_model(name), models.load_tokenizer(original), source)
    loaded = models.load_checkpoint(source, "model.source.path")
    assert loaded.config._attn_implementation == models.ATTENTION
    record = quantization.quantize_base(run.precision, run.runtime, source, quantized)
    held = record.treatment["precision"]
    ends = ENDS["falcon" if name == "falcon" else "llama"]
    assert held["num_quantized_layers"] == held["num_linear_layers"] == 2 * len(ends)
    trained = training.train_adapter(
        run.train, run.adapter, run.precision, run.seeds, run.runtime, run.data.max_sequence_tokens,
        quantized, prepared, tmp_path / "adapter",
    )  # fmt: skip
    assert trained.treatment["adapter"]["target_modules"] == ends
    assert trained.treatment["num_steps"] == 2
    merged = merging.merge_adapter(
        run.merge, run.runtime, quantized, source, tmp_path / "adapter", prepared,
        tmp_path / "merged",
    )  # fmt: skip
    assert merged.result["check"]["largest_logit_difference"] < 1e-4
    plain = models.load_model(tmp_path / "merged", CPU)
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert tied == (name != "llama")


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_logits_at_the_last_positions_only_give_the_same_loss(name: str) -> None:
    model = random_model(name)
    labels = TOKENS.clone()
    labels[:, :30] = -100
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": labels}
    with torch.no_grad():
        full = model(TOKENS, labels=labels).loss
        assert float(batches.supervised_loss(model, batch)) == pytest.approx(float(full), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "group", "ends"),
    [
        ("llama", "attention", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("qwen2", "feed-forward", ["down_proj", "gate_proj", "up_proj"]),
        ("falcon", "attention", ["dense", "query_key_value"]),
        ("falcon", "feed-forward", ["dense_4h_to_h", "dense_h_to_4h"]),
        ("falcon", "all-linear", ENDS["falcon"]),
    ],
)
def test_a_group_means_the_same_in_each_architecture(
    name: str, group: str, ends: list[str], compose: Compose
) -> None:
    found = attached(random_model(name), compose(f"adapter.target_modules=[{group}]"))
    assert sorted({layer.rsplit(".", 1)[-1] for layer in found}) == ends
    assert len(found) == 2 * len(ends)


@pytest.mark.parametrize(("layers", "blocks"), [("[0]", [0]), ("last 1", [1]), ("[1,0]", [0, 1])])
def test_blocks_are_chosen_and_only_they_are_adapted(
    layers: str, blocks: list[int], base: PreTrainedModel, compose: Compose, tmp_path: Path
) -> None:
    run = compose(f"adapter.layers={layers}", "adapter.target_modules=[attention,down_proj]")
    model = adapters.attach_adapter(base, run.adapter, 0)
    live = adapters.describe_adapter(model)
    assert live["blocks"] == blocks
    assert live["num_adapted_layers"] == 5 * len(blocks)
    adapters.save_adapter(model, tmp_path, chain.Stamp(base_hash="b", data_hash="d"))
    again = adapters.load_adapter(models.build_tiny(64, 2, 0)[0], tmp_path, "b")
    names = [name for name, _ in adapters.adapted_layers(again)]
    assert names == [name for name, _ in adapters.adapted_layers(model)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.layers=[0,2]", r"`adapter.layers` names 2, the base's blocks are 0 to 1"),
        ("adapter.layers=last 3", r"`adapter.layers` is 'last 3', the base has 2 blocks"),
        (
            "adapter.target_modules=[atention]",
            r"the base has no atention; it has down_proj.*the groups all-linear, attention, feed",
        ),
    ],
)
def test_a_layer_that_is_not_there_is_named_with_what_there_is(
    override: str, message: str, base: PreTrainedModel, compose: Compose
) -> None:
    with pytest.raises(UserError, match=message):
        adapters.attach_adapter(base, compose(override).adapter, 0)


def test_rslora_scales_by_the_root_of_the_rank(base: PreTrainedModel, compose: Compose) -> None:
    run = compose("adapter.use_rslora=true", "adapter.rank=16", "adapter.alpha_per_rank=0.5")
    live = adapters.describe_adapter(adapters.attach_adapter(base, run.adapter, 0))
    assert live["scaling"] == [0.5 * 16**0.5]  # alpha / sqrt(rank), with alpha = 0.5 * 16


@pytest.mark.parametrize("precision", ["fp32", "fp4", "nf4"])
def test_dora_merges_into_rows_of_the_trained_lengths(
    precision: str, original: Path, quantized: Callable[[str], Path], prepared: Path,
    compose: Compose, tmp_path: Path,
) -> None:  # fmt: skip
    run = compose(f"precision={precision}", "adapter.use_dora=true", "train.epochs=2")
    folder = quantized(precision)
    record = training.train_adapter(
        run.train, run.adapter, run.precision, run.seeds, run.runtime,
        run.data.max_sequence_tokens, folder,
        prepared, tmp_path / "adapter",
    )  # fmt: skip
    assert record.treatment["adapter"]["use_dora"] == [True]
    assert record.treatment["adapter"]["trainable_outside_adapter"] == []
    merged = merging.merge_adapter(
        run.merge, run.runtime, folder, original, tmp_path / "adapter", prepared, tmp_path / "m"
    )
    assert merged.result["check"]["largest_logit_difference"] < 1e-4
    base = models.load_model(folder, CPU)
    before = {n: weights.dequantized_weight(x) for n, x in weights.linear_layers(base).items()}
    after = weights.linear_layers(models.load_model(tmp_path / "m", CPU))
    tuned = adapters.load_adapter(base, tmp_path / "adapter", identity.hash_weights(folder))
    moved = 0.0
    for name, layer in adapters.adapted_layers(tuned):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        length = layer.lora_magnitude_vector["default"].weight
        direction = before[name] + 2.0 * b @ a
        expected = length[:, None] * direction / direction.norm(dim=1, keepdim=True)
        torch.testing.assert_close(after[name].weight, expected, rtol=1e-5, atol=1e-6)
        moved += float((length - before[name].norm(dim=1)).abs().max())
    assert moved > 0, "the lengths are trained too"


def test_an_untrained_dora_adapter_changes_nothing_beyond_rounding(
    base: PreTrainedModel, compose: Compose
) -> None:
    with torch.no_grad():
        before = base(TOKENS).logits
        model = adapters.attach_adapter(base, compose("adapter.use_dora=true").adapter, 0).eval()
        torch.testing.assert_close(model(TOKENS).logits, before, rtol=1e-5, atol=1e-5)


def test_records_of_switches(
    quantized: Callable[[str], Path], prepared: Path, compose: Compose, tmp_path: Path
) -> None:
    found: list[records.Record] = []
    for override in ("adapter.use_rslora=true", "adapter.use_rslora=false"):
        run = compose("precision=fp32", override)
        found.append(training.train_adapter(
            run.train, run.adapter, run.precision, run.seeds, run.runtime,
            run.data.max_sequence_tokens, quantized("fp32"), prepared, tmp_path / "adapter",
        ))  # fmt: skip
    one, other = (record.treatment for record in found)
    assert {key for key in one if one[key] != other[key]} == {"adapter"}
    assert one["adapter"]["use_rslora"] is True
