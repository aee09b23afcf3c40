"""What each way to serve puts into the layers, and what 4-bit codes make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU
from evaluated import make_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from bitrank import adapters, codes, config, identity, methods, models, serving, weights
from bitrank.config import CodesConfig
from bitrank.serving import Layer

Compose = Callable[..., config.RunConfig]
NF4 = CodesConfig(quant_type="nf4", block_size=64, double_quant=True)
FORMATS = [
    CodesConfig(quant_type=kind, block_size=size, double_quant=double)
    for kind, size, double in (
        ("nf4", 64, True), ("nf4", 64, False), ("nf4", 32, True), ("fp4", 64, True),
        ("fp4", 128, False),
    )
]  # fmt: skip


@pytest.fixture
def tuned(
    quantized: Callable[[str], Path], compose: Compose, tmp_path: Path
) -> Callable[[str], adapters.Tuned]:
    def loaded(name: str) -> adapters.Tuned:
        folder = make_adapter(quantized(name), tmp_path / name, compose)
        base = models.load_model(quantized(name), CPU)
        return adapters.load_adapter(base, folder, identity.hash_weights(quantized(name)))

    return loaded


@pytest.fixture
def read(
    original: Path, quantized: Callable[[str], Path], tuned: Callable[[str], adapters.Tuned]
) -> Callable[[str], list[Layer]]:
    def layers(name: str) -> list[Layer]:
        bases = (models.load_model(original), models.load_model(quantized(name), CPU))
        return list(serving.read_layers(*bases, tuned(name), NF4))

    return layers


def product_of(layer: Layer) -> torch.Tensor:
    """(alpha / rank) B A of the adapter that is beside it."""
    a, b = (part["default"].weight for part in (layer.adapted.lora_A, layer.adapted.lora_B))
    return 2.0 * (b.detach() @ a.detach())


@pytest.mark.parametrize("name", ["fp32", "int8", "nf4"])
def test_a_merged_weight_is_the_weight_and_the_scaled_product(
    name: str, read: Callable[[str], list[Layer]]
) -> None:
    for layer in read(name):
        starts = {"merged_original": layer.original, "merged_dequantized": layer.trained_on}
        for way, start in starts.items():
            merged, change = serving.merge_layer(way, layer)
            assert torch.allclose(merged, start + product_of(layer), atol=1e-6)
            assert change is None


def test_merging_back_into_four_bits_is_what_peft_makes_of_it(
    read: Callable[[str], list[Layer]], tuned: Callable[[str], adapters.Tuned]
) -> None:
    with pytest.warns(UserWarning, match="rounding errors"):
        theirs = weights.linear_layers(tuned("nf4").merge_and_unload())
    for layer in read("nf4"):
        ours, change = serving.merge_layer("merged_requantized", layer)
        assert torch.equal(ours, weights.dequantized_weight(theirs[layer.name]))
        assert change is not None
        assert 0 < change.num_changed < change.num_codes


@pytest.mark.parametrize("settings", FORMATS)
def test_quantizing_again_without_an_update_changes_no_code(settings: CodesConfig) -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    once = codes.encode(weight, settings, torch.float32)
    again = codes.encode(once.values(), settings, torch.float32)
    assert once.settings == again.settings == settings
    assert once.count_changed(again) == 0
    if not settings.double_quant:  # whose scales are rounded anew
        assert torch.equal(once.values(), again.values())
    assert codes.encode(weight + 1, settings, torch.float32).count_changed(once) > 1000


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2047), unique=True, max_size=40))
def test_changed_codes_are_counted_one_by_one(places: list[int]) -> None:
    """Of 2,048 weights in blocks of 64, those at `places` go from one code point to another."""
    weight = torch.full((32, 64), 0.1)
    weight[:, 0] = 1.0  # the scale of every block
    moved = weight.clone().view(-1)
    wanted = [place for place in places if place % 64]
    moved[wanted] = -0.6
    first, second = (codes.encode(w.view(32, 64), NF4, torch.float32) for w in (weight, moved))
    assert first.count_changed(second) == len(wanted)


@pytest.mark.parametrize(("kind", "points"), [("nf4", 16), ("fp4", 15)])
def test_the_step_is_the_mean_gap_of_the_code_points_times_the_scale(
    kind: str, points: int
) -> None:
    """fp4 has a zero with either sign, which is one point."""
    weight = torch.linspace(-1, 1, 64).repeat(4, 1) * torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    plain = CodesConfig(quant_type=kind, block_size=64, double_quant=False)
    step = codes.encode(weight, plain, torch.float32).mean_step()
    assert step == pytest.approx(3.0 * 2 / (points - 1))
    double = codes.encode(weight, replace(plain, double_quant=True), torch.float32).mean_step()
    assert double == pytest.approx(step, rel=0.05)


def scaled(layer: Layer, factor: float) -> Layer:
    """The layer with its update made larger or smaller."""
    layer.adapted.scaling["default"] = 2.0 * factor
    return layer


def test_a_small_update_is_rounded_away_and_a_large_one_stays(
    read: Callable[[str], list[Layer]],
) -> None:
    layer = read("nf4")[0]
    left = {}
    for factor in (1e-6, 1e2):
        _, change = serving.merge_layer("merged_requantized", scaled(layer, factor))
        assert change is not None
        left[factor] = serving.summarize_changes([change])
    assert left[1e-6]["codes_changed_share"] == 0
    assert left[1e2]["codes_changed_share"] > 0.5
    assert left[1e2]["update_left_share"] == pytest.approx(1, abs=0.1)


def test_the_update_is_measured_in_steps(read: Callable[[str], list[Layer]]) -> None:
    layer = read("nf4")[0]
    one = serving.describe_update(layer)
    size = float(product_of(layer).square().mean().sqrt())
    assert one["update_rms"] == pytest.approx(size, rel=1e-4)
    ten = serving.describe_update(scaled(layer, 10.0))
    assert ten["update_to_step"] == pytest.approx(10 * one["update_to_step"], rel=1e-3)
    error = layer.original - layer.trained_on
    assert one["error_rms"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-5)


def test_the_rival_is_quantized_once(read: Callable[[str], list[Layer]]) -> None:
    for name in ("nf4", "fp32"):
        for layer in read(name):
            expected = codes.encode(layer.original + product_of(layer), NF4, torch.float32)
            served, change = serving.merge_layer("merged_then_quantized", layer)
            assert torch.allclose(served, expected.values(), atol=1e-5)
            before = codes.encode(layer.original, NF4, torch.float32)
            assert change is not None
            assert change.num_changed == pytest.approx(expected.count_changed(before), abs=4)


def test_a_layer_without_an_update_stays_as_it_is(read: Callable[[str], list[Layer]]) -> None:
    layer = replace(read("nf4")[0], adapted=None)
    for way, expected in (
        ("merged_original", layer.original),
        ("merged_dequantized", layer.trained_on),
        ("merged_requantized", layer.trained_on),
        ("merged_then_quantized", layer.trained_on),
    ):
        served, change = serving.merge_layer(way, layer)
        assert torch.equal(served, expected)
        assert change is None


@pytest.mark.parametrize(
    ("name", "is_full", "absent"),
    [
        ("nf4", False, set()),
        ("fp4", False, set()),
        ("int8", False, {"merged_requantized"}),
        ("fp32", False, {"merged_requantized", "merged_dequantized", "adapter_on_original"}),
        ("fp32", True, {"merged_requantized", "merged_dequantized", "adapter_on_original",
                        "merged_original"}),
    ],
)  # fmt: skip
def test_ways_that_a_precision_or_method_does_not_have_are_named_with_the_reason(
    name: str, is_full: bool, absent: set[str], quantized: Callable[[str], Path]
) -> None:
    base = models.load_model(quantized(name), CPU)
    ways = ("adapter_on_original", "merged_original", "merged_dequantized", "merged_requantized",
            "merged_then_quantized")  # fmt: skip
    reasons = {
        way: serving.reason_against(way, base, methods.of("full" if is_full else "lora"))
        for way in ways
    }
    assert {way for way, reason in reasons.items() if reason} == absent
