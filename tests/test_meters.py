"""Every meter against a quantity that is known beforehand."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from conftest import CPU

from bitrank import meters
from bitrank.meters import CudaMeter, ProcessMeter, StepClock, TensorMeter

MIB = 2**20


def held(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


@pytest.mark.parametrize("size", [1, 1000, 3 * MIB])
def test_an_allocation_counts_exactly(size: int) -> None:
    with TensorMeter() as meter:
        tensor = held(size)
    assert (meter.live_bytes, meter.peak_bytes) == (size, size)
    assert tensor.numel() == size


def test_freed_memory_falls_and_the_peak_stays() -> None:
    with TensorMeter() as meter:
        first = held(1000)
        del first
        assert meter.live_bytes == 0
        second = held(400)
        assert meter.live_bytes == 400
    assert meter.peak_bytes == 1000
    del second
    assert meter.live_bytes == 0  # a tensor may outlive the block


def test_views_count_once_and_keep_their_storage_alive() -> None:
    with TensorMeter() as meter:
        whole = held(1000)
        rows = whole.view(10, 100)
        some, turned = rows[2:4], rows.t()
        assert meter.live_bytes == 1000
        del whole, rows, turned
        assert meter.live_bytes == 1000  # the storage is whole, however little of it is seen
        del some
    assert (meter.live_bytes, meter.peak_bytes) == (0, 1000)


def test_a_storage_that_grows_in_place_counts_its_new_size() -> None:
    with TensorMeter() as meter:
        tensor = held(500)
        tensor.resize_(700)
    assert (meter.live_bytes, meter.peak_bytes) == (700, 700)


def test_temporaries_of_an_expression_make_the_peak() -> None:
    with TensorMeter() as meter:
        tensor = held(1000)
        tensor = (tensor + 1) * 2  # the sum lives beside the first tensor, then beside the product
        assert meter.live_bytes == 1000
    assert meter.peak_bytes == 3000


def test_what_existed_before_keeps_its_category() -> None:
    weight, state = held(300), held(50)
    meter = TensorMeter()
    meter.register("weights", [weight, weight[10:]])
    meter.register("optimizer", [state, weight])  # whoever named a storage first has it
    with meter:
        made = held(20) + 1
        assert meter.live_by_category == {"weights": 300, "optimizer": 50, "activations": 20}
    assert meter.peak_by_category == {"weights": 300, "optimizer": 50, "activations": 40}
    del state, made
    assert (meter.live_bytes, meter.peak_bytes) == (300, 390)


def test_gradients_and_saved_activations_are_told_apart() -> None:
    weight = torch.nn.Parameter(torch.ones(100, 10))  # 4,000 bytes
    meter = TensorMeter()
    meter.register("weights", [weight])
    meter.watch_gradients([weight])
    with meter:
        loss = (torch.ones(5, 100) @ weight).sum()
        # The input (2,000 bytes) is saved for the backward pass, the product (200) is not.
        assert meter.live_by_category["activations"] == 2000 + 4
        loss.backward()
        assert meter.live_by_category["gradients"] == 4000
        (2 * torch.ones(5, 100) @ weight).sum().backward()  # accumulates in place
        assert meter.live_by_category["gradients"] == 4000
        weight.grad = None
        assert meter.live_by_category["gradients"] == 0
    assert meter.peak_by_category["gradients"] == 4000
    (weight * 2).sum().backward()
    assert meter.live_by_category["gradients"] == 0  # the hooks went with the block


def test_the_collector_of_reference_cycles_has_no_say() -> None:
    with TensorMeter() as meter:
        cycle: list[Any] = [held(1000)]
        cycle.append(cycle)
        del cycle
        assert len([[] for _ in range(100_000)]) == 100_000  # brings the collector's turn
        assert meter.live_bytes == 1000
    assert gc.isenabled()
    gc.collect()
    assert meter.live_bytes == 0


def test_two_runs_give_the_same_bytes() -> None:
    def peak() -> Counter[str]:
        model = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(4)))
        meter = TensorMeter()
        meter.register("weights", meters.reachable_tensors(model))
        with meter:
            for size in (3, 17, 5):
                model(torch.randn(size, 32)).relu().pow(2).sum().backward()
        return meter.peak_by_category

    first = peak()
    assert first["weights"] == 4 * (32 * 32 + 32) * 4
    assert all(peak() == first for _ in range(5))


def test_all_tensors_of_a_4_bit_layer_are_reached() -> None:
    layer = Linear4bit(256, 128, bias=False, quant_type="nf4").to("cpu")
    found = {t.untyped_storage()._cdata: t for t in meters.reachable_tensors(layer)}
    state = layer.weight.quant_state
    parts = {
        "codes": (layer.weight, 256 * 128 // 2),
        "block scales, 8 bits each": (state.absmax, 256 * 128 // 64),
        "scales of 256 block scales": (state.state2.absmax, 4 * 256 * 128 // 64 // 256),
        "their mean": (state.offset, 4),
        "code table": (state.code, 4 * 16),
        "code table of the scales": (state.state2.code, 4 * 256),
    }
    for name, (tensor, size) in parts.items():
        assert tensor.untyped_storage().nbytes() == size, name
        assert tensor.untyped_storage()._cdata in found, name
    meter = TensorMeter()
    meter.register("weights", found.values())
    assert meter.live_bytes == sum(size for _, size in parts.values())


@pytest.mark.parametrize("double", [False, True])
def test_quantizing_and_dequantizing_count_what_they_make(double: bool) -> None:
    weight = torch.randn(512, 256)
    size = weight.numel()
    blocks = size // 64
    scales = blocks + 4 * blocks // 256 + 4 if double else 4 * blocks
    tables = 4 * 16 + (4 * 256 if double else 0)
    codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    kept = {t.untyped_storage()._cdata: t for t in meters.reachable_tensors([codes, state])}
    held_bytes = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert held_bytes == size // 2 + scales + tables
    meter = TensorMeter()
    meter.register("weights", kept.values())
    with meter:
        full = dequantize_4bit(codes, state)
        assert meter.live_by_category == {"weights": held_bytes, "activations": 4 * size}
    assert full.shape == weight.shape
    # Double quantization expands the scales to fp32 for a moment, beside the weight.
    assert meter.peak_by_category["activations"] == 4 * size + (4 * blocks if double else 0)


def test_a_4_bit_layer_makes_the_whole_weight_on_the_way_back_only() -> None:
    layer = Linear4bit(256, 512, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.requires_grad_(False).to("cpu")
    rows = torch.randn(4, 256, requires_grad=True)
    meter = TensorMeter()
    meter.register("weights", meters.reachable_tensors([layer, rows]))
    with meter:
        out = layer(rows)
        assert meter.live_by_category["activations"] == 4 * 4 * 512
        forward = meter.peak_by_category["activations"]
        out.sum().backward()
    assert forward < 4 * 256 * 512 <= meter.peak_by_category["activations"]


def test_cycles_between_objects_end_the_walk() -> None:
    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.parts: dict[str, Any] = {"list": [held(1), (held(2),)], "type": torch.Tensor}

    assert sorted(t.numel() for t in meters.reachable_tensors(Holder())) == [1, 2]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times that the clock will read, in order."""
    times: list[float] = []
    monkeypatch.setattr(meters, "perf_counter", lambda: times.pop(0))
    return times


def test_the_clock_drops_the_warm_up_and_what_is_not_timed(ticking: list[float]) -> None:
    clock = StepClock(2, CPU)
    ticking.extend([0, 50, 90, 1000, 1001, 1003, 1006])
    clock.start()
    clock.tick()
    clock.tick()
    clock.start()  # 910 seconds of something else
    for _ in range(3):
        clock.tick()
    assert clock.seconds == [1, 2, 3]
    assert clock.summary() == {"median": 2, "p10": pytest.approx(1.2), "p90": pytest.approx(2.8),
                               "all": [1, 2, 3]}  # fmt: skip


def test_the_ceiling_is_the_fastest_product(
    ticking: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(meters.CEILING_SIZE, "cpu", 10)
    # start, deadline 1 s later, a tick and a look at the deadline a product; the first is warm-up
    ticking.extend([0, 0, 0.1, 0.6, 0.6, 0.8, 0.8, 1.2, 1.2])
    assert meters.measure_ceiling(CPU, torch.float32) == pytest.approx(2 * 10**3 / 0.2)


def test_a_process_peak_is_seen_after_it_was_freed() -> None:
    before = meters.process_memory()["resident_bytes"]
    assert before is not None
    with ProcessMeter(before) as meter:
        block = bytearray(128 * MIB)
        del block
    assert meter.peak_above_baseline is not None
    assert 120 * MIB < meter.peak_above_baseline < 160 * MIB
    now = meters.process_memory()["resident_bytes"]
    with ProcessMeter(now) as quiet:
        pass
    assert quiet.peak_above_baseline is not None
    assert quiet.peak_above_baseline < 32 * MIB  # the peak before was forgotten


def test_memory_is_unknown_where_the_platform_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "PROC", tmp_path / "none")
    assert meters.process_memory() == {"resident_bytes": None, "peak_bytes": None}
    with ProcessMeter(None) as meter, CudaMeter(CPU) as cuda:
        pass
    assert meter.peak_above_baseline is None
    assert cuda.peaks is None
