"""The fused update is LoRA: values, gradients, dropout, and what PEFT computes without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CPU

from bitrank import adapters, chain, config, identity, low_rank, models
from bitrank.low_rank import LowRankUpdate


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 5), (2, 3, 4), (2, 4), (5, 2))  # y, x, A, B
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    y, x, a, b = tensors
    torch.testing.assert_close(LowRankUpdate.apply(*tensors, 0.7), y + 0.7 * (x @ a.t()) @ b.t())
    assert torch.autograd.gradcheck(LowRankUpdate.apply, (*tensors, 0.7))


def test_a_half_precision_base_gets_an_update_that_was_computed_in_fp32() -> None:
    torch.manual_seed(0)
    y = torch.randn(3, 5).bfloat16().requires_grad_()
    x, a, b = torch.randn(3, 4), torch.randn(2, 4), torch.randn(5, 2)
    found = LowRankUpdate.apply(y, x, a, b, 2.0)
    # Rounded once, after the sum, as PEFT does.
    assert torch.equal(found, (y.float() + 2.0 * ((x @ a.t()) @ b.t())).bfloat16())
    assert torch.equal(found, low_rank.add_update(y.detach(), x, a, b, 2.0))
    found.sum().backward()
    assert y.grad is not None
    assert y.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_peft_computes_the_same_without_it(
    precision: str,
    dropout: float,
    quantized: Callable[[str], Path],
    compose: Callable[..., config.RunConfig],
) -> None:
    point = compose(f"precision={precision}", f"adapter.dropout={dropout}").adapter
    base = models.load_model(quantized(precision), CPU)
    model = adapters.attach_adapter(base, point, 0).train()
    for _, layer in adapters.adapted_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    tokens = torch.arange(24).view(2, 12)

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(1)
        model.zero_grad()
        logits = model(tokens).logits
        logits.square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return logits, gradients

    logits, gradients = step()
    for _, layer in adapters.adapted_layers(model):
        assert layer.lora_variant.pop("default")
    expected, wanted = step()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == wanted.keys()
    assert len(gradients) == 28
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("fp32", "plain"), ("fp32", "rslora"), ("fp32", "dora"), ("fp32", "bfloat16"),
     ("int8", "plain"), ("int8", "rslora"), ("nf4", "plain"), ("nf4", "dora")],
)  # fmt: skip
def test_a_loaded_adapter_computes_what_peft_computes_and_merges_as_it_does(
    precision: str,
    kind: str,
    quantized: Callable[[str], Path],
    compose: Callable[..., config.RunConfig],
    tmp_path: Path,
) -> None:
    folder = quantized(precision)
    given = {"rslora": ["adapter.use_rslora=true"], "dora": ["adapter.use_dora=true"]}
    point = compose(f"precision={precision}", *given.get(kind, [])).adapter
    trained = adapters.attach_adapter(models.load_model(folder, CPU), point, 0)
    for _, layer in adapters.adapted_layers(trained):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    base_hash = identity.hash_weights(folder)
    adapters.save_adapter(trained, tmp_path, chain.Stamp(base_hash=base_hash, data_hash="0"))

    base = models.load_model(folder, CPU)
    base = base.bfloat16() if kind == "bfloat16" else base
    model = adapters.load_adapter(base, tmp_path, base_hash)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        fused = model(tokens).logits
        assert torch.equal(fused, model(tokens).logits)  # what is added in place stays there once
        for _, layer in adapters.adapted_layers(model):
            if kind == "dora":
                assert not isinstance(layer.lora_variant["default"], low_rank.FusedLora)
            else:
                assert isinstance(layer.lora_variant.pop("default"), low_rank.FusedLora)
        plain = model(tokens).logits
        assert torch.equal(fused, plain)
    if precision == "fp32":
        again = adapters.load_adapter(models.load_model(folder, CPU), tmp_path, base_hash)
        merged = again.merge_and_unload(safe_merge=True)
        with torch.no_grad():
            torch.testing.assert_close(
                merged(tokens).logits.to(plain.dtype), plain, rtol=1e-3, atol=3e-2
            )
