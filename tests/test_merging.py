"""The merged weight is W + (alpha / rank) * B A, and the merged model answers as base + adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CPU, PRECISIONS
from transformers import AutoModelForCausalLM

from bitrank import adapters, config, identity, merging, models, paths, records, training, weights
from bitrank.errors import UserError

TOKENS = torch.arange(40).unsqueeze(0)
Merge = Callable[..., records.Record]


@pytest.fixture
def merge(
    original: Path,
    quantized: Callable[[str], Path],
    prepared: Path,
    compose: Callable[..., config.RunConfig],
    tmp_path: Path,
) -> Merge:
    def merged(*overrides: str) -> records.Record:
        run = compose(*overrides)
        folder, adapter = quantized(run.precision.name), tmp_path / "adapter"
        training.train_adapter(run.train, run.adapter, run.precision, run.seeds, run.runtime,
                               run.data.max_sequence_tokens, folder, prepared, adapter)  # fmt: skip
        return merging.merge_adapter(
            run.merge, run.runtime, folder, original, adapter, prepared, tmp_path / "merged"
        )

    return merged


@pytest.mark.parametrize("name", PRECISIONS)
def test_merged_weights_and_logits(
    name: str, merge: Merge, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    record = merge(f"precision={name}")
    base = models.load_model(quantized(name), CPU)
    before = {n: weights.dequantized_weight(x) for n, x in weights.linear_layers(base).items()}
    after = weights.linear_layers(models.load_model(tmp_path / "merged", CPU))
    tuned = adapters.load_adapter(
        base, tmp_path / "adapter", identity.hash_weights(quantized(name))
    )
    for layer_name, layer in adapters.adapted_layers(tuned):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = before[layer_name] + 2.0 * (b @ a)
        assert torch.allclose(after[layer_name].weight, expected, atol=1e-6)
        assert not torch.equal(after[layer_name].weight, before[layer_name])
    assert record.result["check"]["largest_logit_difference"] < 1e-4
    assert record.result["check"]["argmax_agreement"] == 1
    assert record.result["num_merged_layers"] == 14


def test_plain_transformers_loads_the_merged_model(merge: Merge, tmp_path: Path) -> None:
    merge("precision=nf4")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(plain.config, "quantization_config")
    with torch.no_grad():
        ours = models.load_model(tmp_path / "merged", CPU)(TOKENS).logits
        assert torch.equal(plain(TOKENS).logits, ours)


def test_merging_into_the_original_differs_by_the_quantization_error_only(
    merge: Merge, original: Path, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    record = merge("precision=nf4", "merge=original")
    assert record.treatment["base"] == "original"
    into_original = weights.linear_layers(models.load_model(tmp_path / "merged", CPU))
    merge("precision=nf4")
    into_dequantized = weights.linear_layers(models.load_model(tmp_path / "merged", CPU))
    full = weights.linear_layers(models.load_model(original, CPU))
    packed = weights.linear_layers(models.load_model(quantized("nf4"), CPU))
    for name, layer in full.items():
        error = layer.weight - weights.dequantized_weight(packed[name])
        shift = into_original[name].weight - into_dequantized[name].weight
        assert torch.allclose(shift, error, atol=1e-6)


def test_the_same_merge_gives_the_same_record(merge: Merge) -> None:
    assert merge("precision=nf4").result == merge("precision=nf4").result


def test_a_merge_in_half_precision_is_cast_last(merge: Merge, tmp_path: Path) -> None:
    merge("precision=fp32", "merge.dtype=bfloat16")
    half = models.load_model(tmp_path / "merged", CPU)
    merge("precision=fp32")
    full = weights.linear_layers(models.load_model(tmp_path / "merged", CPU))
    for name, layer in weights.linear_layers(half).items():
        assert torch.equal(layer.weight, full[name].weight.to(torch.bfloat16))


def test_an_adapter_of_other_rows_is_refused(
    merge: Merge, compose: Callable[..., config.RunConfig], original: Path,
    quantized: Callable[[str], Path], prepared: Path, tmp_path: Path,
) -> None:  # fmt: skip
    merge("precision=nf4")
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.jsonl").write_text("{}")
    paths.template(other).write_text(paths.template(prepared).read_text())
    run = compose()
    with pytest.raises(UserError, match="was trained on other rows"):
        merging.merge_adapter(run.merge, run.runtime, quantized("nf4"), original,
                              tmp_path / "adapter", other, tmp_path / "m2")  # fmt: skip
    assert not (tmp_path / "m2").exists()
