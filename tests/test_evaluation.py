"""Scores are lm-eval's own and a direct computation's; records repeat, and say what was loaded."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitrank import (
    adapters,
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
from bitrank.config import EvaluateConfig, RunConfig, RuntimeConfig
from bitrank.errors import UserError
from bitrank.pins import Benchmark

ROOT = Path(__file__).parents[1]
RUNTIME = RuntimeConfig(device="cpu", threads=1, allow_slow=False)
QUESTIONS = [
    {"question": f"What is {n}?", "choices": [f"a {n}", f"not {n} at all"], "gold": n % 2}
    for n in range(6)
]
TEXTS = [{"text": f"Once there were {'very ' * n}many words."} for n in range(2, 8)]


def pin(name: str, layout: Any) -> Benchmark:
    return Benchmark(package="p", version="1", sha256="0" * 64, member="m", name=name,
                     format=layout, num_items=6)  # fmt: skip


def configured(dequantize: bool = True) -> EvaluateConfig:
    pins = [pin("quiz", "lettered_options"), pin("prose", "text_lines")]
    return EvaluateConfig(
        batch_size=4,
        dequantize=dequantize,
        benchmarks=pins,
        benchmark_subjects=list(paths.SUBJECTS),
    )


def write_prepared(folder: Path, answers: list[str], count: int = 9) -> Path:
    rows = [
        {"prompt": f"number {n} is", "answer": answers[n % len(answers)], "group": str(n)}
        for n in range(count)
    ]
    for split in paths.SPLITS:
        records.write_jsonl(paths.split(split, folder), rows)
    records.write_text(folder / "choices.json", json.dumps(sorted(answers)))
    return folder


def write_free_text(folder: Path, ignore: list[str], stop: list[str], count: int = 6) -> Path:
    """Prepared rows with free-text answers of up to 6 tokens."""
    rows = [{"prompt": f"number {n} is" + " so" * (n % 3), "answer": f" {n}", "group": str(n)}
            for n in range(count)]  # fmt: skip
    for split in paths.SPLITS:
        records.write_jsonl(paths.split(split, folder), rows)
    asked = {"stop": stop, "max_new_tokens": 6, "ignore": ignore}
    records.write_text(folder / "generation.json", json.dumps(asked))
    (folder / "choices.json").unlink(missing_ok=True)
    return folder


def link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source, target_is_directory=True)


def make_adapter(base: Path, folder: Path, compose: Callable[..., RunConfig]) -> Path:
    """An adapter that changes what the base computes, as `train` leaves it."""
    model = adapters.attach_adapter(models.load_model(base), compose().adapter, 0)
    for _, layer in adapters.lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    stamp = adapters.Stamp(base_hash=identity.hash_weights(base), data_hash="0" * 64)
    adapters.save_adapter(model, folder, stamp)
    return folder


@pytest.fixture
def project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    original: Path,
    quantized: Callable[[str], Path],
    compose: Callable[..., RunConfig],
) -> Path:
    """All that is evaluated, in the current directory: the base is nf4."""
    monkeypatch.chdir(tmp_path)
    write_prepared(paths.PREPARED, [" cold", " hot", " warm"])
    records.write_jsonl(paths.BENCHMARKS / "quiz.jsonl", QUESTIONS)
    records.write_jsonl(paths.BENCHMARKS / "prose.jsonl", TEXTS)
    link(paths.ORIGINAL, original)
    link(paths.QUANTIZED, quantized("nf4"))
    link(paths.MERGED, original)
    make_adapter(paths.QUANTIZED, paths.ADAPTER, compose)
    return tmp_path


def all_tasks() -> list[tasks.Task]:
    benchmarks = tasks.benchmark_tasks(configured().benchmarks, paths.BENCHMARKS)
    return [tasks.trained_task(paths.PREPARED), *benchmarks]


def score_with_lm_eval(task: tasks.Task, model: Any, tokenizer: Any, folder: Path) -> Any:
    """lm-eval alone, on a file of the documents: what its command line does with a task's YAML."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    file = folder / f"{task.name}.jsonl"
    records.write_jsonl(file, task.documents)
    where = {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}
    config = {**task.config, "dataset_path": "json", "dataset_kwargs": where}
    loaded = TaskManager(include_defaults=False).load([config])
    return evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), loaded)


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

    def direct(prompt: str, answer: str) -> float:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(prompt + answer).input_ids])
        logprobs = model(ids).logits[0].double().log_softmax(-1)
        return -sum(float(logprobs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))

    rows = records.read_jsonl(paths.split("test"))
    items = records.read_items(paths.items("original") / "task.jsonl")
    for row, item in zip(rows, items, strict=True):
        nlls = {c: direct(row["prompt"], c) for c in (" cold", " hot", " warm")}
        share = math.exp(-nlls[row["answer"]]) / sum(math.exp(-nll) for nll in nlls.values())
        assert item.nll == pytest.approx(nlls[row["answer"]], abs=1e-4)
        assert item.choice_nll == pytest.approx(-math.log(share), abs=1e-4)
        assert item.prediction == min(nlls, key=lambda choice: nlls[choice])
        assert item.correct == (item.prediction == row["answer"])
        assert item.num_tokens == len(row["answer"])  # the tokenizer is one of bytes


def test_free_text_is_what_the_model_says_greedily(project: Path) -> None:
    write_free_text(paths.PREPARED, [], [])
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    record = evaluation.evaluate_model("original", configured(), RUNTIME)

    def greedy(prompt: str) -> str:
        ids = list(tokenizer(prompt).input_ids)
        start = len(ids)
        while len(ids) < start + 6:
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if best == tokenizer.eos_token_id:
                break
            ids.append(best)
        return tokenizer.decode(ids[start:])

    def direct(prompt: str, answer: str) -> float:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(prompt + answer).input_ids])
        logprobs = model(ids).logits[0].double().log_softmax(-1)
        return -sum(float(logprobs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))

    rows = records.read_jsonl(paths.split("test"))
    items = records.read_items(paths.items("original") / "task.jsonl")
    for row, item in zip(rows, items, strict=True):
        assert item.doc_hash == identity.hash_json(row)
        assert item.prediction == greedy(row["prompt"])
        assert item.target == row["answer"]
        assert item.nll == pytest.approx(direct(row["prompt"], row["answer"]), abs=1e-4)
        assert item.num_tokens == len(row["answer"])
        assert item.choice_nll is None
    found = record.result["tasks"]["task"]
    assert found["nll"] == pytest.approx(statistics.fmean(item.nll or 0 for item in items))
    assert found["num_choices"] is None
    assert record.treatment["tasks"]["task"]["generation"]["max_gen_toks"] == 6
    assert record.treatment["tasks"]["task"]["generation"]["until"] == []


@pytest.mark.parametrize("ignore", [[], ["(?s).+"], [r"\d"], [r"[^\d]"]])
def test_free_text_is_compared_as_lm_eval_compares(project: Path, ignore: list[str]) -> None:
    task = tasks.trained_task(write_free_text(paths.PREPARED, ignore, ["\n"]))
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    alone = score_with_lm_eval(task, model, tokenizer, project)["results"]["task"]
    assert scores.metrics["exact_match"] == alone["exact_match,none"]
    assert scores.metrics["exact_match_stderr"] == alone["exact_match_stderr,none"]
    assert scores.metrics["exact_match"] == (1.0 if ignore == ["(?s).+"] else 0.0)
    for document, (text, correct) in zip(task.documents, scores.generated, strict=True):
        assert correct == tasks.same_answer(text, document["answer"], ignore)
    items = evaluation.list_items(task, scores)
    assert [item.correct for item in items] == [correct for _, correct in scores.generated]


def test_an_answer_ends_at_a_stop_and_spaces_around_it_do_not_count(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_free_text(paths.PREPARED, [], ["\n", "<turn>"])
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    texts = [" 0\nmore", "1<turn>2", "  2 ", "5", "4.", " 5\n5"]
    task = tasks.trained_task(paths.PREPARED)
    # In the order in which lm-eval asks: long prompts first.
    order = sorted(range(6), key=lambda n: (-len(task.documents[n]["prompt"]),
                                            task.documents[n]["prompt"]))  # fmt: skip
    said = iter([texts[n] for n in order])

    def generate(_: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        assert options["do_sample"] is False
        texts = [tokenizer(f"{next(said):<9}").input_ids for _ in input_ids]
        return torch.cat([input_ids, torch.tensor([row[:9] for row in texts])], dim=1)

    monkeypatch.setattr(type(model), "generate", generate)
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    assert [text.rstrip() for text, _ in scores.generated] == [" 0", "1", "  2", "5", "4.", " 5"]
    assert [correct for _, correct in scores.generated] == [True, True, True, False, False, True]
    assert evaluation._metrics(scores)["acc"] == scores.metrics["exact_match"] == 4 / 6


def test_a_prompt_without_room_for_an_answer_is_refused(project: Path) -> None:
    task = tasks.trained_task(write_free_text(paths.PREPARED, [], []))
    model, tokenizer = models.load_model(paths.ORIGINAL), models.load_tokenizer(paths.ORIGINAL)
    long = [{**task.documents[0], "prompt": "x" * 510}]
    with pytest.raises(
        UserError, match=r"prompt of 510 tokens and `data.task.max_new_tokens` \(6\)"
    ):
        harness.Scorer(model, tokenizer, 4).run(dataclasses.replace(task, documents=long))


class Watched:
    """The rows of token ids that go through a model, with their padding of zeros."""

    def __init__(self, model: Any) -> None:
        self.rows: list[list[int]] = []
        model.register_forward_pre_hook(self._see)

    def _see(self, _: Any, arguments: Any) -> None:
        self.rows += arguments[0].tolist()


def test_one_token_labels_cost_one_row_a_document(tmp_path: Path, original: Path) -> None:
    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    watched = Watched(model)
    task = tasks.trained_task(write_prepared(tmp_path, ["C", "H", "W"]))
    scores = harness.Scorer(model, tokenizer, 4).run(task)
    assert len(watched.rows) == scores.num_forward_rows == len(task.documents)
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
        assert [
            seen for seen in watched.rows if seen[: len(fed)] == fed and not any(seen[len(fed) :])
        ]
        assert (
            counts[task.config["doc_to_choice"].index(row["answer"])] == trained.num_supervised - 1
        )


def test_a_record_tells_what_was_evaluated(project: Path) -> None:
    base = identity.hash_weights(paths.QUANTIZED)
    treatments = {
        subject: evaluation.evaluate_model(subject, configured(), RUNTIME).treatment
        for subject in paths.SUBJECTS
    }
    assert treatments["original"]["base_hash"] == identity.hash_weights(paths.ORIGINAL)
    assert treatments["quantized"]["base_hash"] == treatments["adapter"]["base_hash"] == base
    assert treatments["adapter"]["adapter_hash"] == identity.hash_weights(paths.ADAPTER)
    assert treatments["merged"]["merged_hash"] == identity.hash_weights(paths.MERGED)
    assert treatments["merged"]["base_hash"] is None
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
    paths.MERGED.unlink()
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
