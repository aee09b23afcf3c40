"""Training changes the adapter and nothing else; equal seeds give equal bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CPU, PRECISIONS
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bitrank import adapters, batches, config, identity, models, records, training
from bitrank.errors import UserError

TOKENS = torch.arange(40).unsqueeze(0)
Compose = Callable[..., config.RunConfig]
Train = Callable[..., records.Record]


@pytest.mark.parametrize("name", PRECISIONS)
def test_lora_learns_on_every_base_and_leaves_the_base_alone(
    name: str, train: Train, quantized: Callable[[str], Path]
) -> None:
    before = identity.hash_weights(quantized(name))
    record = train(f"precision={name}", "train.epochs=6")
    assert record.result["validation"][-1]["loss"] < record.result["validation"][0]["loss"]
    assert identity.hash_weights(quantized(name)) == before == record.treatment["base_hash"]
    live = record.treatment["adapter"]
    assert live["trainable_outside_adapter"] == []
    assert live["dtypes"] == ["float32"]
    assert live["num_adapted_layers"] == record.treatment["precision"]["num_linear_layers"] == 14


def test_treatments_of_two_precisions_differ_in_the_base_only(train: Train) -> None:
    lora, qlora = train("precision=fp32").treatment, train("precision=nf4").treatment
    assert {key for key in lora if lora[key] != qlora[key]} == {"base_hash", "precision"}


def test_the_frozen_base_is_bit_identical_after_training(
    train: Train, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    train("precision=nf4")
    base = models.load_model(quantized("nf4"), CPU)
    with torch.no_grad():
        expected = base(TOKENS).logits
        tuned = adapters.load_adapter(
            base, tmp_path / "adapter", identity.hash_weights(quantized("nf4"))
        )
        assert not torch.equal(tuned(TOKENS).logits, expected)
        with tuned.disable_adapter():
            assert torch.equal(tuned(TOKENS).logits, expected)


def test_equal_seeds_give_equal_bytes_and_each_seed_matters(train: Train) -> None:
    dropout = "adapter.dropout=0.1"
    one, same = train(dropout), train(dropout)
    assert one.result == same.result
    order, init = train(dropout, "seeds.order=5"), train(dropout, "seeds.init=5")
    assert order.result["first_weights_hash"] == one.result["first_weights_hash"]
    assert init.result["first_weights_hash"] != one.result["first_weights_hash"]
    hashes = {r.result["adapter_hash"] for r in (one, order, init)}
    assert len(hashes) == 3


def test_the_folder_of_equal_runs_is_equal_file_by_file(train: Train, tmp_path: Path) -> None:
    """PEFT writes sets in another order in each process, and paths of the machine."""
    train(folder="one")
    train(folder="two")
    assert identity.hash_files(tmp_path / "one") == identity.hash_files(tmp_path / "two")
    assert str(tmp_path) not in (tmp_path / "one" / "adapter_config.json").read_text()


def test_accumulation_is_exact(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows at once, or in four parts with other numbers of targets: the same training."""
    monkeypatch.setattr(batches, "bucketed_order", lambda lengths, *_: range(len(lengths)))
    whole, parts = (
        train("precision=fp32", f"train.micro_batch_size={size}").result["losses"]
        for size in (8, 2)
    )
    assert len(whole) == len(parts) == 6
    for one, other in zip(whole, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


def test_no_rate_learns_nothing(train: Train) -> None:
    record = train("train.learning_rate=1e-30")
    assert record.result["validation"][0]["loss"] == pytest.approx(
        record.result["validation"][-1]["loss"], abs=1e-6
    )


def test_plain_peft_loads_the_adapter(
    train: Train, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    train("precision=nf4")
    folder = quantized("nf4")
    ours = adapters.load_adapter(
        models.load_model(folder, CPU), tmp_path / "adapter", identity.hash_weights(folder)
    )
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert torch.equal(plain(TOKENS).logits, ours(TOKENS).logits)


def test_an_adapter_refuses_another_base(
    train: Train, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    train("precision=nf4")
    other = quantized("fp4")
    with pytest.raises(UserError, match="was trained on the base"):
        adapters.load_adapter(
            models.load_model(other, CPU), tmp_path / "adapter", identity.hash_weights(other)
        )


def test_an_untrained_adapter_changes_nothing(
    quantized: Callable[[str], Path], compose: Compose
) -> None:
    base = models.load_model(quantized("nf4"), CPU)
    with torch.no_grad():
        before = base(TOKENS).logits
        model = adapters.attach_adapter(base, compose().adapter, 0).eval()
        assert torch.equal(model(TOKENS).logits, before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.target_modules=[q_prj]", r"the base has no q_prj; it has down_proj, gate_proj"),
        ("adapter.rank=65", "`adapter.rank` 65 is above the size of"),
        ("train.learning_rate=1e30", "the loss is (nan|inf) at step"),
    ],
)
def test_a_fault_is_named_and_leaves_no_adapter(
    train: Train, override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train("precision=fp32", override)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_target_modules_choose_the_layers(train: Train) -> None:
    live = train("adapter.target_modules=[q_proj,v_proj]").treatment["adapter"]
    assert live["target_modules"] == ["q_proj", "v_proj"]
    assert live["num_adapted_layers"] == 4


def test_scaling_is_alpha_over_rank(train: Train, compose: Compose) -> None:
    for rank in (2, 4):
        live = train(f"adapter.rank={rank}", "adapter.alpha_per_rank=1.5").treatment["adapter"]
        assert (live["rank"], live["scaling"]) == ([rank], [1.5])


def test_a_base_of_another_precision_is_refused(
    quantized: Callable[[str], Path], prepared: Path, compose: Compose, tmp_path: Path
) -> None:
    run = compose("precision=nf4")
    with pytest.raises(UserError, match="the base is not what `precision` asks for"):
        training.train_adapter(
            run.train, run.adapter, dataclasses.replace(run.precision, double_quant=False),
            run.seeds, run.runtime,
            run.data.max_sequence_tokens, quantized("nf4"), prepared, tmp_path / "a", tmp_path,
        )  # fmt: skip
