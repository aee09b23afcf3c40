"""A type that a device cannot compute in, or only by emulation, is refused before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from bitrank import config, environment
from bitrank.errors import UserError

HALF = ("precision=fp32", "precision.weight_dtype=bfloat16", "precision.compute_dtype=bfloat16")


@pytest.fixture
def run(compose: Callable[..., config.RunConfig]) -> config.RunConfig:
    return compose(*HALF)


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    monkeypatch.setattr(environment, "time_product", lambda device, dtype: seconds[dtype])


def test_a_slow_type_is_refused_unless_it_is_wanted(
    run: config.RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, float32=0.01, bfloat16=1.0)
    with pytest.raises(
        UserError, match=r"`precision.compute_dtype` is bfloat16.* 100 times.*runtime.allow_slow"
    ):
        environment.prepare_runtime(run.runtime, run.precision)
    wanted = dataclasses.replace(run.runtime, allow_slow=True)
    assert environment.prepare_runtime(wanted, run.precision).type == "cpu"


def test_a_type_that_is_fast_enough_passes(
    run: config.RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, float32=0.01, bfloat16=0.05)
    environment.prepare_runtime(run.runtime, run.precision)


def test_a_type_without_a_kernel_is_refused_even_then(
    run: config.RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(device: torch.device, dtype: str) -> float:
        if dtype != "float32":
            raise RuntimeError('"addmm_impl_cpu_" not implemented\nmore')
        return 0.01

    monkeypatch.setattr(environment, "time_product", no_kernel)
    wanted = dataclasses.replace(run.runtime, allow_slow=True)
    with pytest.raises(UserError, match=r"in which cpu cannot compute \(.*not implemented\)"):
        environment.prepare_runtime(wanted, run.precision)


def test_fp32_is_not_timed(
    compose: Callable[..., config.RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch)  # any call would fail
    fp32 = compose("precision=nf4")
    environment.prepare_runtime(fp32.runtime, fp32.precision)


def test_a_product_takes_time_and_larger_ones_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PROBE_SIZE", 64)
    small = environment.time_product(torch.device("cpu"), "float32")
    monkeypatch.setattr(environment, "PROBE_SIZE", 1024)
    assert 0 < small < environment.time_product(torch.device("cpu"), "float32")
