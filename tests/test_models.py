"""Every precision is held as configured, reloads to the bit, and shows in the live model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CPU, PRECISIONS

from bitrank import config, identity, models, quantization, sources, weights
from bitrank.errors import UserError
from bitrank.pins import HubModel, LocalModel

TOKENS = torch.arange(40).unsqueeze(0)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_saved_checkpoint_reloads_bit_identically(
    name: str,
    original: Path,
    quantized: Callable[[str], Path],
    compose: Callable[..., config.RunConfig],
) -> None:
    precision = compose(f"precision={name}").precision
    live = weights.quantize_model(original, precision, CPU)
    reloaded = models.load_model(quantized(name), CPU)
    weights.check_precision(reloaded, precision)
    with torch.no_grad():
        assert torch.equal(live(TOKENS).logits, reloaded(TOKENS).logits)


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_block_size_is_kept_and_larger_blocks_lose_more(
    block_size: int, original: Path, tmp_path: Path, compose: Callable[..., config.RunConfig]
) -> None:
    run = compose(f"precision.block_size={block_size}")
    record = quantization.quantize_base(run.precision, run.runtime, original, tmp_path / "q")
    assert record.treatment["precision"]["block_sizes"] == [block_size]
    halved = compose(f"precision.block_size={2 * block_size}").precision
    other = quantization.quantize_base(halved, run.runtime, original, tmp_path / "r")
    assert other.result["relative_error"] > record.result["relative_error"]
    assert other.result["bits_per_quantized_weight"] < record.result["bits_per_quantized_weight"]


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_codes_are_the_same_bits_in_another_type(
    storage: str, original: Path, quantized: Callable[[str], Path],
    tmp_path: Path, compose: Callable[..., config.RunConfig],
) -> None:  # fmt: skip
    """FSDP cuts up floating-point weights only: the codes are then kept as such, and reload."""
    run = compose(f"precision.quant_storage={storage}")
    record = quantization.quantize_base(run.precision, run.runtime, original, tmp_path / "q")
    held = record.treatment["precision"]["stored_elements_by_dtype"]
    assert "uint8" not in held
    assert held[storage] > 0
    stored, usual = (models.load_model(f, CPU) for f in (tmp_path / "q", quantized("nf4")))
    with torch.no_grad():
        assert torch.equal(stored(TOKENS).logits, usual(TOKENS).logits)


def test_double_quantization_holds_the_scales_in_fewer_bits(
    original: Path, tmp_path: Path, compose: Callable[..., config.RunConfig]
) -> None:
    bits = {}
    for double in (True, False):
        run = compose(f"precision.double_quant={str(double).lower()}")
        record = quantization.quantize_base(run.precision, run.runtime, original, tmp_path / "q")
        assert record.treatment["precision"]["double_quant"] == [double]
        bits[double] = record.result["bits_per_quantized_weight"]
    # Dettmers et al. 2023, section 3: 8/64 + 32/(64 * 256) bits a weight instead of 32/64; a layer
    # of the tiny model has fewer than 256 blocks, so its second scale is shared by fewer weights.
    assert bits[False] == 4.5
    assert 4 + 8 / 64 + 32 / (64 * 256) < bits[True] < 4.15


def test_fp32_changes_nothing(
    original: Path, tmp_path: Path, compose: Callable[..., config.RunConfig]
) -> None:
    run = compose("precision=fp32")
    record = quantization.quantize_base(run.precision, run.runtime, original, tmp_path / "q")
    assert record.result["relative_error"] == 0
    assert record.result["bits_per_quantized_weight"] is None
    assert record.result["base_hash"] == identity.hash_weights(original)


@pytest.mark.parametrize("name", ["fp4", "nf4"])
def test_dequantized_weights_give_the_same_logits_to_the_bit(
    name: str, quantized: Callable[[str], Path]
) -> None:
    model = models.load_model(quantized(name), CPU)
    with torch.no_grad():
        stored = model(TOKENS).logits
        plain = weights.dequantize_model(model)
        assert torch.equal(stored, plain(TOKENS).logits)
    assert weights.describe_precision(plain)["num_quantized_layers"] == 0


def test_dequantized_weight_is_what_the_layer_computes_with(
    quantized: Callable[[str], Path],
) -> None:
    for name in PRECISIONS:
        layers = weights.linear_layers(models.load_model(quantized(name), CPU))
        layer = next(iter(layers.values())).train()  # int8 quantizes activations in evaluation
        unit = torch.eye(layer.in_features)
        assert torch.allclose(layer(unit).T, weights.dequantized_weight(layer), atol=1e-6), name


def test_a_base_in_another_precision_is_refused_and_the_layer_is_named(
    quantized: Callable[[str], Path], compose: Callable[..., config.RunConfig]
) -> None:
    model = models.load_model(quantized("fp4"), CPU)
    with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn\.q_proj is held as"):
        weights.check_precision(model, compose("precision=nf4").precision)


def test_identity_is_of_the_weights_and_not_of_the_files(original: Path, tmp_path: Path) -> None:
    model = models.load_model(original, CPU)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert identity.hash_weights(tmp_path / "sharded") == identity.hash_weights(original)
    next(iter(weights.linear_layers(model).values())).weight.data[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    assert identity.hash_weights(tmp_path / "changed") != identity.hash_weights(original)


def test_weights_are_counted_the_same_in_every_precision(quantized: Callable[[str], Path]) -> None:
    counts = {weights.count_weights(models.load_model(quantized(n), CPU)) for n in PRECISIONS}
    assert len(counts) == 1


def test_the_tiny_model_is_decided_by_its_seed() -> None:
    one, same, other = (models.build_tiny(64, 2, seed)[0] for seed in (0, 0, 1))
    first = list(one.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other.parameters(), strict=True))


def test_a_pickle_checkpoint_is_refused(original: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((original / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    source = LocalModel(kind="local", path=str(tmp_path), watch=str(tmp_path))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        sources.load(source, tmp_path)


def test_a_local_folder_passes_through_with_the_same_identity(
    original: Path, tmp_path: Path
) -> None:
    fetched = sources.load(LocalModel(kind="local", path=str(original), watch="x"), tmp_path)
    models.save_model(fetched.model, fetched.tokenizer, tmp_path / "copy")
    assert identity.hash_weights(tmp_path / "copy") == identity.hash_weights(original)
    assert str(original.parent) not in str(fetched.resolved), "a path may hold a user's name"


def test_without_a_network_the_hub_source_says_so(tmp_path: Path) -> None:
    source = HubModel(kind="hub", repo="someone/something", revision="main", watch="x")
    with pytest.raises(UserError, match="cannot be downloaded"):
        sources.load(source, tmp_path)
