"""Scores are lm-eval's own and a direct computation's; records repeat, and say what was loaded."""

from __future__ import annotations

import dataclasses
import math
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import stamp_base
from evaluated import (
    RUNTIME,
    configured,
    direct_nll,
    link,
    score_with_lm_eval,
    write_free_text,
    write_prepared,
)

from bitrank import (
    evaluation,
    hardware,
    harness,
    identity,
    models,
    paths,
    prompts,
    records,
    tasks,
    weights,
)
from bitrank.config import RunConfig
from bitrank.errors import UserError

ROOT = Path(__file__).parents[1]


def all_tasks() -> list[tasks.Task]:
    benchmarks = tasks.benchmark_tasks(configured().benchmarks, paths.BENCHMARKS)
    return [tasks.trained_task(paths.PREPARED), *benchmarks]


def test_scores_are_those_of_lm_eval_alone(project: Path) -> None:
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    for task in all_tasks():
        expected = score_with_lm_eval(task, model, tokenizer, project)
        found = harness.Scorer(model, tokenizer, 4).run(task)
        for name, value in found.metrics.items():
            alone = expected["results"][task.name][f"{name},none"]
            assert alone == "N/A" if value is None else value == pytest.approx(alone, rel=1e-6)
        # To the last digit where a row's product does not depend on how many rows there are.
        logged = [sample["resps"] for sample in expected["samples"][task.name]]
        for of_document, answers in zip(found.loglikelihoods, logged, strict=True):
            alone = [a[0][0] if isinstance(a[0], tuple) else a[0] for a in answers]
            assert of_document == pytest.approx(alone, abs=1e-4)


def test_nll_is_what_the_model_says_directly(project: Path) -> None:
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    evaluation.evaluate_model("original", configured(), RUNTIME)

    rows = records.read_jsonl(paths.split("test"))
    items = records.read_items(paths.items("original") / "task.jsonl")
    for row, item in zip(rows, items, strict=True):
        nlls = {
            c: direct_nll(model, tokenizer, row["prompt"], c) for c in (" cold", " hot", " warm")
        }
        share = math.exp(-nlls[row["answer"]]) / sum(math.exp(-nll) for nll in nlls.values())
        assert item.nll == pytest.approx(nlls[row["answer"]], abs=1e-4)
        assert item.choice_nll == pytest.approx(-math.log(share), abs=1e-4)
        assert item.prediction == min(nlls, key=lambda choice: nlls[choice])
        assert item.correct == (item.prediction == row["answer"])
        assert item.num_tokens == len(row["answer"])  # the tokenizer is one of bytes


class Watched:
    """What goes through a model: for each position, the tokens that it sees, itself the last."""

    def __init__(self, model: Any) -> None:
        self.contexts: list[list[int]] = []
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _: Any, arguments: Any, given: dict[str, Any]) -> None:
        (ids,) = arguments
        mask = given.get("attention_mask")
        causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        seen = causal if mask is None else mask[0, 0]
        self.contexts += [row[visible].tolist() for row in ids for visible in seen]


def test_one_token_labels_cost_one_row_a_document(tmp_path: Path, original: Path) -> None:
    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    watched = Watched(model)
    task = tasks.trained_task(write_prepared(tmp_path, ["C", "H", "W"]))
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    assert scores.num_forward_rows == len(task.documents)
    prompts_alone = [tokenizer(document["prompt"]).input_ids for document in task.documents]
    assert all(prompt in watched.contexts for prompt in prompts_alone)
    assert len(watched.contexts) < sum(map(len, prompts_alone))  # what they share is there once
    longer = tasks.trained_task(write_prepared(tmp_path, [" cold", " hot", " warm"]))
    assert harness.Scorer(model, tokenizer, 4).run(longer).num_forward_rows > len(task.documents)


@pytest.mark.parametrize("answers", [["C", "H"], [" cold", " hot"]])
def test_scored_tokens_are_those_of_training(
    tmp_path: Path, original: Path, answers: list[str]
) -> None:
    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    watched = Watched(model)
    task = tasks.trained_task(write_prepared(tmp_path, answers))
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    for row, counts in zip(task.documents, scores.num_tokens, strict=True):
        trained = prompts.encode(tokenizer, row["prompt"], row["answer"], 200)
        fed = trained.input_ids[:-2]  # without the end token and the token predicted last
        assert fed in watched.contexts
        assert (
            counts[task.config["doc_to_choice"].index(row["answer"])] == trained.num_supervised - 1
        )


def test_strings_encoded_ahead_are_encoded_as_lm_eval_does(original: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    bos = tokenizer.decode([tokenizer.eos_token_id])
    strings = ["plain", " spaces ", f"{bos}marked", "", "two\nlines"]
    for add_bos_token in (None, True, False):
        alone = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=add_bos_token)
        scorer = harness.Scorer(model, tokenizer, 4)
        scorer.add_bos_token = add_bos_token
        scorer._encode_ahead(strings)
        assert [scorer.tok_encode(s) for s in strings] == [alone.tok_encode(s) for s in strings]


def test_a_record_tells_what_was_evaluated(project: Path) -> None:
    base = identity.hash_weights(paths.QUANTIZED)
    treatments = {
        subject: evaluation.evaluate_model(subject, configured(), RUNTIME).treatment
        for subject in paths.SUBJECTS
    }
    assert treatments["original"]["base_hash"] == identity.hash_weights(paths.ORIGINAL)
    assert treatments["quantized"]["base_hash"] == treatments["adapter"]["base_hash"] == base
    assert treatments["merged"]["merged_hash"] == identity.hash_weights(paths.MERGED)
    assert treatments["merged"]["base_hash"] is None
    for subject in ("adapter", "merged"):
        assert treatments[subject]["adapter_hash"] == identity.hash_weights(paths.ADAPTER)
        assert treatments[subject]["original_hash"] == treatments["original"]["base_hash"]
        assert treatments[subject]["stopped_at_step"] == 7
    assert treatments["quantized"]["precision"]["quant_types"] == ["nf4"]
    assert treatments["quantized"]["computed_on"] == "dequantized weights"
    assert treatments["original"]["computed_on"] == "stored weights"
    assert treatments["original"]["tasks"]["task"]["num_choices"] == 3
    assert treatments["original"]["tasks"]["task"]["num_one_token_choices"] == 0


def test_the_same_model_gives_the_same_result_and_items_pair(project: Path) -> None:
    first = evaluation.evaluate_model("quantized", configured(), RUNTIME)
    again = evaluation.evaluate_model("quantized", configured(), RUNTIME)
    tuned = evaluation.evaluate_model("adapter", configured(), RUNTIME)
    assert first.result == again.result
    assert set(first.observation["seconds"]) == {"task", "quiz", "prose"}
    assert first.result["tasks"]["task"]["nll"] != tuned.result["tasks"]["task"]["nll"]
    for name, file_hash in first.result["items"].items():
        file = paths.items("quantized") / f"{name}.jsonl"
        assert identity.hash_file(file) == file_hash
        other = records.read_items(paths.items("adapter") / f"{name}.jsonl")
        assert [item.doc_hash for item in records.read_items(file)] == [i.doc_hash for i in other]


def test_results_are_means_over_the_items(project: Path) -> None:
    found = evaluation.evaluate_model("original", configured(), RUNTIME).result["tasks"]
    for name in ("task", "quiz"):
        items = records.read_items(paths.items("original") / f"{name}.jsonl")
        right = [float(bool(item.correct)) for item in items]
        assert found[name]["acc"] == pytest.approx(statistics.fmean(right))
        stderr = statistics.stdev(right) / math.sqrt(len(right))
        assert found[name]["acc_stderr"] == pytest.approx(stderr)
        assert found[name]["nll"] == pytest.approx(statistics.fmean(i.nll for i in items))
        assert found[name]["num_items"] == len(items)
    items = records.read_items(paths.items("original") / "prose.jsonl")
    total = sum(item.nll for item in items)
    words = sum(len(item.target.split()) for item in items)
    assert found["prose"]["word_perplexity"] == pytest.approx(math.exp(total / words))
    size = sum(len(item.target.encode()) for item in items)
    assert found["prose"]["bits_per_byte"] == pytest.approx(total / size / math.log(2))
    assert found["prose"]["num_choices"] is None
    assert "acc_norm" in found["quiz"]


def test_dequantizing_first_changes_no_logit(project: Path) -> None:
    fast = evaluation.evaluate_model("adapter", configured(dequantize=True), RUNTIME)
    slow = evaluation.evaluate_model("adapter", configured(dequantize=False), RUNTIME)
    assert slow.treatment["computed_on"] == "stored weights"
    # Where the CPU multiplies in bf16, bitsandbytes silently does so on stored 4-bit weights.
    tolerance = 0.05 if "avx512_bf16" in hardware.cpu_features() else 0.0
    for name, metrics in slow.result["tasks"].items():
        assert fast.result["tasks"][name]["nll"] == pytest.approx(metrics["nll"], rel=tolerance)


@pytest.mark.parametrize("overrides", [["precision=int8"], ["precision.compute_dtype=bfloat16"]])
def test_what_computes_differently_stays_on_its_stored_weights(
    project: Path, compose: Callable[..., RunConfig], overrides: list[str]
) -> None:
    precision = compose(*overrides).precision
    model = weights.quantize_model(paths.ORIGINAL, precision, torch.device("cpu"))
    paths.QUANTIZED.unlink()
    models.save_model(model, models.load_tokenizer(paths.ORIGINAL), paths.QUANTIZED)
    stamp_base(paths.QUANTIZED, paths.ORIGINAL, precision)
    record = evaluation.evaluate_model("quantized", configured(dequantize=True), RUNTIME)
    assert record.treatment["precision"]["quant_types"] == [precision.quant_type]
    assert record.treatment["computed_on"] == "stored weights"


def test_an_adapter_of_another_base_is_refused(
    project: Path, quantized: Callable[[str], Path]
) -> None:
    paths.QUANTIZED.unlink()
    link(paths.QUANTIZED, quantized("fp4"))
    with pytest.raises(UserError, match="was trained on the base"):
        evaluation.evaluate_model("adapter", configured(), RUNTIME)
    assert not paths.items("adapter").exists()


def test_what_is_missing_is_named(project: Path) -> None:
    with pytest.raises(UserError, match="original, quantized, adapter, merged"):
        evaluation.evaluate_model("orginal", configured(), RUNTIME)
    shutil.rmtree(paths.MERGED)
    with pytest.raises(UserError, match=r"data/merged does not exist"):
        evaluation.evaluate_model("merged", configured(), RUNTIME)
    (paths.BENCHMARKS / "quiz.jsonl").unlink()
    with pytest.raises(UserError, match=r"quiz\.jsonl does not exist"):
        evaluation.evaluate_model("original", configured(), RUNTIME)


def test_a_prompt_that_the_model_cannot_take_is_refused(tmp_path: Path, original: Path) -> None:
    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    task = tasks.trained_task(write_prepared(tmp_path, ["C", "H"]))
    long = [{**task.documents[0], "prompt": "long " * 200}]
    with pytest.raises(UserError, match="1001 tokens, the model takes 512"):
        harness.Scorer(model, tokenizer, 4).run(dataclasses.replace(task, documents=long))


@pytest.mark.parametrize("free_text", [False, True])
def test_no_network_and_no_noise(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    free_text: bool,
) -> None:
    if free_text:
        write_free_text(paths.PREPARED, [], ["\n"])

    def refuse(*_: Any) -> None:
        raise AssertionError("evaluation reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    evaluation.evaluate_model("original", configured(), RUNTIME)
    shown, logged = capfd.readouterr()
    assert not shown
    assert [line.split(":")[0] for line in logged.splitlines()] == [
        *["evaluate task"] * (1 + free_text), "evaluate quiz", "evaluate prose",
    ]  # fmt: skip


def test_the_script_tells_an_unknown_model_in_one_line(
    tmp_path: Path, compose: Callable[..., RunConfig]
) -> None:
    from bitrank import composition

    text = composition.compose_text(["experiment=smoke"], ROOT / "conf")
    (tmp_path / "params.yaml").write_text(text)
    script = ROOT / "stages" / "evaluate.py"
    answer = subprocess.run([sys.executable, str(script), "teacher"], cwd=tmp_path,
                            capture_output=True, text=True)  # fmt: skip
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith("error: there is no model 'teacher'")
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "data").exists()
