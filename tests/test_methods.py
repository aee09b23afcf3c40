"""Every method: it composes or is refused, trains, is saved and loaded, merges where it can."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU, ROOT

import methods as matrix
from bitrank import (
    adapters,
    batches,
    chain,
    composition,
    config,
    identity,
    models,
    paths,
    predict,
    prefix_trees,
    weights,
)
from bitrank.errors import ConfigError, UserError

Compose = Callable[..., config.RunConfig]
POINTS = matrix.compose_points()
QUANTIZED = ("nf4", "int8", "fp4")
METHODS = matrix.options("adapter")
WORKING = [point for point in POINTS if point.run is not None]
UNMERGED = {"bottleneck", "prompt_tuning", "p_tuning", "prefix_tuning"}
TOKENS = torch.arange(30).view(2, 15)


def chosen() -> list[matrix.Point]:
    """LoRA on every precision, each other method on a plain base and on one quantized in turn;
    `make methods` runs all."""
    by_name = {(point.method, point.precision): point for point in WORKING}
    wanted = [point for point in WORKING if point.method == "lora"]
    for row, method in enumerate(METHODS):
        if method != "lora":
            turns = [QUANTIZED[(row + turn) % len(QUANTIZED)] for turn in range(len(QUANTIZED))]
            there = [(method, precision) for precision in turns if (method, precision) in by_name]
            wanted += [by_name[key] for key in [(method, "fp32"), *there[:1]] if key in by_name]
    return wanted


@pytest.fixture(scope="module")
def project() -> Iterator[None]:
    assert WORKING[0].run is not None
    with matrix.project(WORKING[0].run):
        yield


@pytest.mark.parametrize("point", chosen(), ids=lambda point: point.name)
def test_a_point_goes_through_all_stages(point: matrix.Point, project: None) -> None:
    found = matrix.run_point(point)
    assert found["train"]["num_trainable_parameters"] > 0
    before, after = (found["train"]["validation"][at]["loss"] for at in (0, -1))
    assert before != after
    stamp = chain.read_stamp(paths.ADAPTER)
    assert stamp.adapter_hash == found["train"]["adapter_hash"]
    assert point.run is not None
    assert stamp.method == point.run.adapter.method
    assert list(paths.ADAPTER.glob("*.safetensors"))
    assert not list(paths.ADAPTER.glob("*.bin"))
    scored = found["adapter"]["tasks"]["task"]["nll"]
    if point.method in UNMERGED:
        assert "merge" in found["merge"]["why_not"]
        assert found["merged"] == {
            "tasks": {}, "items": {}, "why_not": found["merge"]["why_not"],
        }  # fmt: skip
        assert not list(paths.MERGED.glob("*.safetensors"))
    elif point.run.merge.base == "dequantized" or point.precision == "fp32":
        assert found["merge"]["check"]["largest_logit_difference"] < 1e-3
        # int8 layers also quantize what comes in, when they are evaluated
        assert found["merged"]["tasks"]["task"]["nll"] == pytest.approx(
            scored, rel=0.05 if point.precision == "int8" else 1e-4
        )


def test_each_method_with_each_other_setting_is_among_the_points() -> None:
    for method in METHODS:
        tried = {turn for point in WORKING if point.method == method for turn in point.others}
        wanted = {turn for turns in matrix.TURNS for turn in turns}
        if method == "full":
            wanted -= {"merge=original"}
        if method == "prefix_tuning":
            wanted -= {"train.gradient_checkpointing=true"}
        few = len([point for point in WORKING if point.method == method]) < 4
        assert tried <= wanted
        assert few or tried == wanted, method


def test_what_cannot_be_is_refused_with_the_nearest_thing_that_works() -> None:
    refused = {(point.method, point.precision) for point in POINTS if point.run is None}
    assert {("pissa", "nf4"), ("olora", "int8"), ("loftq", "fp32"), ("dora", "int8"),
            ("full", "nf4")} <= refused  # fmt: skip
    for point in POINTS:
        if point.refused is not None:
            assert point.refused.startswith("`adapter.")
            assert re.search(r"add precision=|take adapter=", point.refused), point.refused


def test_the_page_is_what_the_configuration_says() -> None:
    assert matrix.PAGE.read_text("utf-8") == matrix.write_page(POINTS), "`make methods` writes it"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=vera", "adapter.rank=0"], "`adapter.rank` must be at least 1, got 0"),
        (["adapter=vera", "adapter.first_factor=0"], "`adapter.first_factor` must not be 0"),
        (["adapter=oft", "adapter.block_size=1"], "`adapter.block_size` must be at least 2"),
        (["adapter=ia3", "adapter.scaled_inputs=[up_proj]"], "up_proj is not"),
        (["adapter=bottleneck", "adapter.size=0"], "`adapter.size` must be at least 1, got 0"),
        (["adapter=bottleneck", "adapter.after=[]"], "`adapter.after` must name attention"),
        (["adapter=bottleneck", "adapter.activation=sine"], "must be one of relu, gelu, silu"),
        (["adapter=prompt_tuning", "adapter.num_virtual_tokens=0"], "must be at least 1, got 0"),
        (["adapter=p_tuning", "adapter.hidden_size=0"], "`adapter.hidden_size` must be at least"),
        (["adapter=dora", "adapter.use_dora=false"], "`adapter.use_dora` must be true with"),
        (["adapter=pissa", "adapter.use_dora=true", "precision=fp32"], "take adapter=dora"),
        (["adapter=prefix_tuning", "train.gradient_checkpointing=true"],
         "`train.gradient_checkpointing` must be false"),
        (["adapter=ia3", "+adapter.rank=8"], "`adapter.rank` is not a known key"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composition.compose_text(overrides, ROOT / "conf")


def test_all_faults_are_told_at_once() -> None:
    bad = ["adapter=pissa", "precision=nf4", "train.optimizer=paged_adamw_8bit"]
    with pytest.raises(ConfigError, match="2 faults"):
        composition.compose_text(bad, ROOT / "conf")


@pytest.fixture
def base(original: Path) -> Any:
    return models.load_model(original, CPU)


PLAIN = [point.method for point in WORKING if point.precision == "fp32"]


def attached(method: str, base: Any, compose: Compose, seed: int = 0) -> Any:
    run = compose(f"adapter={method}", "precision=fp32")
    return adapters.attach_adapter(base, run.adapter, seed)


def shift(model: Any) -> None:
    """Change what is trained, as if it had been."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("method", PLAIN)
def test_what_is_saved_is_what_was_trained_and_fits_its_base_only(
    method: str, base: Any, original: Path, compose: Compose, tmp_path: Path
) -> None:
    model = attached(method, base, compose)
    shift(model)
    model.eval()
    with torch.no_grad():
        expected = model(TOKENS).logits
    stamp = chain.Stamp(base_hash="b", data_hash="d")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    hashes = {adapters.save_adapter(model, tmp_path / name, stamp) for name in ("one", "two")}
    assert len(hashes) == 1
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1]
    again = adapters.load_adapter(models.load_model(original, CPU), tmp_path / "one", "b")
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="was trained on the base b, this one is c"):
        adapters.load_adapter(models.load_model(original, CPU), tmp_path / "one", "c")


@pytest.mark.parametrize("method", sorted(set(PLAIN) - {"full"}))
def test_the_seed_decides_the_first_weights_and_the_live_model_tells(
    method: str, original: Path, compose: Compose
) -> None:
    made = [attached(method, models.load_model(original, CPU), compose, seed) for seed in (0, 0, 1)]
    hashes = [adapters.hash_first_weights(model) for model in made]
    assert hashes[0] == hashes[1]
    # these begin with what the base is, or with ones
    assert (hashes[0] == hashes[2]) == (method in ("pissa", "olora", "ia3", "oft"))
    live = adapters.describe_adapter(made[0])
    assert live["method"] == method
    assert live["dtypes"] == ["float32"]
    assert live["trainable_outside_adapter"] == []
    assert 0 < adapters.trainable_share(made[0]) < 0.6
    for name, parameter in made[0].named_parameters():
        assert parameter.requires_grad == weights.is_of_adapter(name), name


@pytest.mark.parametrize("method", sorted({*PLAIN} - {"full", "prompt_tuning", "p_tuning",
                                                     "prefix_tuning"}))  # fmt: skip
def test_an_untrained_adapter_changes_nothing(method: str, base: Any, compose: Compose) -> None:
    with torch.no_grad():
        expected = base(TOKENS).logits
        found = attached(method, base, compose).eval()(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_pissa_takes_the_largest_values_out_of_the_base(
    base: Any, original: Path, compose: Compose
) -> None:
    before = weights.linear_layers(models.load_model(original, CPU))
    model = attached("pissa", base, compose)
    assert adapters.describe_adapter(model)["residual_hash"] is not None
    for name, layer in adapters.adapted_layers(model):
        values = torch.linalg.svdvals(before[name].weight.data)
        left = torch.linalg.svdvals(layer.get_base_layer().weight.data)
        torch.testing.assert_close(left[:-8], values[8:], rtol=1e-3, atol=1e-5)
        assert float(left[-8:].abs().max()) < 1e-5


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_loftq_begins_nearer_to_the_weights_than_the_quantized_base(
    precision: str, original: Path, quantized: Callable[[str], Path], compose: Compose
) -> None:
    before = weights.linear_layers(models.load_model(original, CPU))
    run = compose("adapter=loftq", f"precision={precision}")
    held = models.load_model(quantized(precision), CPU)
    model = adapters.attach_adapter(held, run.adapter, 0, original)
    method = adapters.method_of(model)
    for name, layer in adapters.adapted_layers(model):
        coarse = weights.dequantized_weight(layer.get_base_layer())
        wanted = before[name].weight.data
        with_it = method.merged_weight(layer, coarse)
        assert (with_it - wanted).norm() < 0.95 * (coarse - wanted).norm()
    fresh = models.load_model(quantized(precision), CPU)
    with pytest.raises(UserError, match="needs the weights before quantization"):
        adapters.attach_adapter(fresh, run.adapter, 0, original / "nowhere")


VIRTUAL = ("prompt_tuning", "p_tuning", "prefix_tuning")


@pytest.mark.parametrize("method", VIRTUAL)
def test_a_model_with_vectors_before_a_row_answers_as_any_other(
    method: str, base: Any, compose: Compose
) -> None:
    """Logits of the row's own tokens, all or some; with a cache; padded on the right."""
    model = attached(method, base, compose)
    shift(model)
    model.eval()
    with torch.no_grad():
        whole = model(TOKENS).logits
        assert whole.shape[:2] == TOKENS.shape
        some = model(TOKENS, logits_to_keep=torch.tensor([3, 7]), use_cache=False).logits
        torch.testing.assert_close(some, whole[:, [3, 7]])
        last = model(TOKENS, logits_to_keep=1, use_cache=True)
        torch.testing.assert_close(last.logits, whole[:, -1:])
        begun = model(TOKENS[:, :10], use_cache=True)
        ended = model(TOKENS[:, 10:], past_key_values=begun.past_key_values, use_cache=True)
        torch.testing.assert_close(ended.logits, whole[:, 10:], rtol=1e-4, atol=1e-4)
        mask = torch.ones_like(TOKENS)
        mask[:, 12:] = 0
        padded = model(TOKENS, attention_mask=mask).logits
        torch.testing.assert_close(padded[:, :12], whole[:, :12], rtol=1e-4, atol=1e-4)
    assert not prefix_trees.reads_trees(model, tuple(range(12)), CPU)


@pytest.mark.parametrize("method", VIRTUAL)
def test_generation_begins_with_the_vectors(
    method: str, base: Any, original: Path, compose: Compose
) -> None:
    model = attached(method, base, compose).eval()
    tokenizer = models.load_tokenizer(original)
    ids = tokenizer("a colour", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False,
                                pad_token_id=tokenizer.eos_token_id)  # fmt: skip
    ours = predict.generate(model, tokenizer, "a colour", 6)
    assert tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True) == ours


def test_the_loss_of_the_answers_has_a_gradient_for_every_vector(
    base: Any, compose: Compose
) -> None:
    model = attached("prompt_tuning", base, compose).train()
    labels = torch.full_like(TOKENS, -100)
    labels[:, -2:] = TOKENS[:, -2:]
    batches.supervised_loss(model, {"input_ids": TOKENS, "labels": labels}).backward()
    (gradient,) = [p.grad for p in model.parameters() if p.requires_grad]
    assert bool((gradient.abs().sum(dim=1) > 0).all())


def test_a_bottleneck_stands_behind_the_parts_it_was_asked_for(
    base: Any, compose: Compose, tmp_path: Path
) -> None:
    run = compose("adapter=bottleneck", "adapter.after=[feed-forward]", "adapter.layers=last 1")
    model = adapters.attach_adapter(base, run.adapter, 0)
    names = [name for name, _ in adapters.adapted_layers(model)]
    assert names == ["model.layers.1.mlp.down_proj"]
    adapters.save_adapter(model, tmp_path, chain.Stamp(base_hash="b", data_hash="d"))
    assert json.loads((tmp_path / "bottleneck.json").read_text())["behind"] == names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["adapter=oft", "adapter.block_size=48"], "does not divide the 64 inputs of"),
        (["adapter=ia3", "adapter.target_modules=[keys]", "adapter.scaled_inputs=[]"],
         "the base has no keys; it has"),
        (["adapter=bottleneck", "adapter.layers=[7]"], "`adapter.layers` names 7"),
        (["adapter=prompt_tuning", "adapter.num_virtual_tokens=99999"], "leaves no room"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_base_is_told(
    override: list[str], message: str, base: Any, compose: Compose
) -> None:
    with pytest.raises(UserError, match=message):
        adapters.attach_adapter(base, compose(*override).adapter, 0)


@pytest.mark.parametrize("method", sorted({*PLAIN} - {"full"}))
def test_a_checkpoint_holds_all_that_is_trained(
    method: str, base: Any, original: Path, compose: Compose, tmp_path: Path
) -> None:
    """Of p-tuning the network too, of which the adapter keeps what it makes only."""
    model = attached(method, base, compose)
    shift(model)
    model.save_pretrained(str(tmp_path))
    fresh = attached(method, models.load_model(original, CPU), compose)
    fresh.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert identity.hash_json([identity.hash_tensor(p) for p in model.parameters()]) == (
        identity.hash_json([identity.hash_tensor(p) for p in fresh.parameters()])
    )
