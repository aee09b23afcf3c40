"""Every way to serve one adapter, against what was trained, on the same items."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from evaluated import RUNTIME, configured, link, make_adapter, write_free_text

from bitrank import (
    adapters,
    chain,
    distances,
    evaluation,
    fidelity,
    full_tuning,
    identity,
    merging,
    models,
    paths,
    records,
    tasks,
)
from bitrank.config import FidelityConfig, RunConfig, Way
from bitrank.errors import ConfigError, UserError

Compose = Callable[..., RunConfig]
ALL: list[Way] = list(get_args(Way))


@pytest.fixture
def asked(compose: Compose) -> FidelityConfig:
    return replace(compose().fidelity, num_items=None, ways=ALL)


@pytest.fixture
def measure(project: Path, asked: FidelityConfig) -> Callable[..., records.Record]:
    """Measure in the project, whose untrained bases have answered."""

    def measured(**changed: Any) -> records.Record:
        for subject in fidelity.UNTRAINED:
            if not paths.items(subject).is_dir():
                evaluation.evaluate_model(subject, configured(), RUNTIME)
        return fidelity.measure_fidelity(
            replace(asked, **changed), configured(), "float32", RUNTIME
        )

    return measured


def rebase(name: str, quantized: Callable[[str], Path], compose: Compose) -> None:
    """Another base in the project, with an adapter of its own."""
    paths.QUANTIZED.unlink()
    link(paths.QUANTIZED, quantized(name))
    make_adapter(paths.QUANTIZED, paths.ADAPTER, compose)


def test_what_was_trained_comes_back_where_it_should_and_not_elsewhere(
    measure: Callable[..., records.Record],
) -> None:
    found = measure().result["ways"]
    exact = found["merged_dequantized"]
    assert exact["mean_kl"] < 1e-8
    assert exact["argmax_agreement"] == 1
    assert exact["changes"]["nll"]["outcome"] == "the same"
    for way in ("merged_original", "merged_requantized", "merged_then_quantized"):
        assert found[way]["mean_kl"] > 1e-5, way
    assert found["merged_requantized"]["codes_changed_share"] > 0
    assert exact["codes_changed_share"] is None


def test_the_adapter_beside_the_original_is_the_merge_into_it(
    measure: Callable[..., records.Record],
) -> None:
    scores = measure().result["scores"]
    beside, merged = (scores[way]["task"] for way in ("adapter_on_original", "merged_original"))
    assert beside["nll"] == pytest.approx(merged["nll"], abs=1e-4)
    assert beside["nll"] != pytest.approx(scores["adapter"]["task"]["nll"], abs=1e-3)


@pytest.mark.parametrize("base", ["original", "dequantized"])
def test_a_way_scores_as_the_merged_model_that_the_pipeline_stores(
    base: str, measure: Callable[..., records.Record], compose: Compose, original: Path
) -> None:
    shutil.rmtree(paths.MERGED)
    merging.merge_adapter(compose(f"merge={base}").merge, RUNTIME)
    stored = evaluation.evaluate_model("merged", configured(), RUNTIME).result["tasks"]["task"]
    served = measure(ways=[f"merged_{base}"]).result["scores"][f"merged_{base}"]["task"]
    assert served["nll"] == pytest.approx(stored["nll"], abs=1e-6)
    assert served["acc"] == stored["acc"]
    assert served["acc_stderr"] == pytest.approx(stored["acc_stderr"])


def test_the_reference_is_the_adapter_as_it_is_evaluated(
    measure: Callable[..., records.Record],
) -> None:
    there = evaluation.evaluate_model("adapter", configured(), RUNTIME).result["tasks"]
    here = measure(benchmarks=True).result["scores"]
    for task in ("task", "quiz", "prose"):
        assert here["adapter"][task]["nll"] == there[task]["nll"]
        assert set(here["merged_original"]) == set(here["untrained_quantized"]) == set(there)


def test_the_same_adapter_gives_the_same_result(measure: Callable[..., records.Record]) -> None:
    first, again = measure(), measure()
    assert first.result == again.result
    assert first.treatment == again.treatment
    for name, sha256 in first.result["items"].items():
        assert identity.hash_file(paths.items("fidelity") / f"{name}.jsonl") == sha256


def test_fewer_items_are_the_first_ones(measure: Callable[..., records.Record]) -> None:
    whole, part = measure(), measure(num_items=4)
    assert (whole.result["num_items"], part.result["num_items"]) == (9, 4)
    measure(num_items=4)
    items = records.read_items(paths.items("fidelity") / "merged_original" / "task.jsonl")
    rows = records.read_jsonl(paths.split("test"))[:4]
    assert [item.doc_hash for item in items] == [identity.hash_json(row) for row in rows]


def test_answers_of_the_untrained_base_to_other_rows_are_refused(
    measure: Callable[..., records.Record],
) -> None:
    measure(ways=[])
    rows = records.read_jsonl(paths.split("test"))
    records.write_jsonl(paths.split("test"), reversed(rows))
    with pytest.raises(UserError, match="answers other rows"):
        measure(ways=[])


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_base_without_four_bit_codes_has_the_ways_that_make_sense(
    name: str, measure: Callable[..., records.Record], quantized: Callable[[str], Path],
    compose: Compose,
) -> None:  # fmt: skip
    rebase(name, quantized, compose)
    record = measure()
    found = record.result["ways"]
    assert "no 4-bit codes" in found["merged_requantized"]["reason"] or name == "fp32"
    assert found["merged_requantized"].keys() == {"reason"}
    assert found["merged_then_quantized"]["codes_changed_share"] > 0
    assert record.treatment["codes"] == {
        "quant_type": "nf4", "block_size": 64, "double_quant": True, "of_the_base": False,
    }  # fmt: skip
    if name == "fp32":
        assert found["merged_original"]["mean_kl"] < 1e-8


def test_full_fine_tuning_can_only_be_quantized(
    measure: Callable[..., records.Record], quantized: Callable[[str], Path], compose: Compose,
    tmp_path: Path,
) -> None:  # fmt: skip
    paths.QUANTIZED.unlink()
    link(paths.QUANTIZED, quantized("fp32"))
    model = full_tuning.unfreeze(models.load_model(paths.QUANTIZED))
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    known = chain.check_base(paths.QUANTIZED)
    rows = vars(chain.identify_rows(paths.PREPARED))
    stamp = chain.Stamp(base_hash=known.base_hash, original_hash=known.original_hash, **rows)
    for file in paths.ADAPTER.iterdir():
        file.unlink()
    adapters.save_adapter(model, paths.ADAPTER, stamp)
    found = measure().result["ways"]
    assert {way for way in found if found[way]["reason"] is None} == {"merged_then_quantized"}
    assert found["merged_then_quantized"]["mean_kl"] > 0
    assert found["merged_then_quantized"]["codes_changed_share"] > 0


def test_free_text_answers_are_compared_too(
    measure: Callable[..., records.Record], compose: Compose
) -> None:
    write_free_text(paths.PREPARED, [], ["\n"])
    make_adapter(paths.QUANTIZED, paths.ADAPTER, compose)
    found = measure().result
    assert found["ways"]["merged_dequantized"]["mean_kl"] < 1e-8
    assert found["ways"]["merged_dequantized"]["changes"]["choice_nll"] is None
    assert 0 <= found["scores"]["merged_original"]["task"]["acc"] <= 1


def test_evaluate_full_serves_everything_on_everything(compose: Compose) -> None:
    full = compose("evaluate=full")
    assert set(full.fidelity.ways) == set(ALL)
    assert full.fidelity.num_items is None
    assert full.fidelity.benchmarks
    assert set(full.evaluate.benchmark_subjects) == set(paths.SUBJECTS)
    assert compose("evaluate=full", "fidelity.num_items=7").fidelity.num_items == 7
    assert not compose("evaluate=default").fidelity.benchmarks


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("fidelity.num_items=1", "`fidelity.num_items` must be null or at least 2, got 1"),
        ("fidelity.ways=[merged]", "must be one of adapter_on_original, merged_original"),
        ("fidelity.ways=[merged_original,merged_original]", "`fidelity.ways` must be distinct"),
        ("fidelity.codes.block_size=48", "`fidelity.codes.block_size` must be a power of two"),
    ],
)
def test_a_wrong_setting_is_named_as_the_user_wrote_it(
    override: str, told: str, compose: Compose
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        compose(override)


def test_each_prompt_is_held_against_the_token_that_follows_it(original: Path) -> None:
    """Answers of several tokens and of different lengths: one distance a prompt."""
    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    caught = distances.NextTokens()
    task = tasks.Task(
        "task",
        [{"prompt": f"number {n} is", "answer": " hot"} for n in range(3)],
        {"output_type": "multiple_choice", "task": "task", "test_split": "test", "num_fewshot": 0,
         "doc_to_text": "prompt", "doc_to_target": "answer", "target_delimiter": "",
         "doc_to_choice": [" cold", " hot", " very warm"],
         "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]},
    )  # fmt: skip
    evaluation.score_model(model, tokenizer, [task], 4, caught)
    prompts = [tuple(tokenizer(row["prompt"]).input_ids) for row in task.documents]
    assert set(caught.logits) == set(prompts)
    for prompt in prompts:
        with torch.no_grad():
            alone = model(torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(caught.logits[prompt], alone, atol=1e-4)


def test_kl_is_that_of_torch_and_not_symmetric() -> None:
    first, second = (torch.randn(50, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    found, largest, agreed = distances.measure_distance(first, second)
    expected = torch.nn.functional.kl_div(
        second.double().log_softmax(-1), first.double().softmax(-1), reduction="sum"
    )
    assert found == pytest.approx(float(expected))
    assert found != pytest.approx(distances.measure_distance(second, first)[0])
    assert largest == pytest.approx(float((first - second).abs().max()))
    assert agreed == bool(first.argmax() == second.argmax())
    assert distances.measure_distance(first, first + 3)[0] == pytest.approx(0, abs=1e-12)
