"""A project with all that is evaluated, on a tiny model; and lm-eval's own scores of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitrank import adapters, chain, identity, models, paths, records, tasks
from bitrank.config import EvaluateConfig, RunConfig, RuntimeConfig
from bitrank.pins import Benchmark

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
    records.write_text(paths.template(folder), json.dumps({"template_hash": "e" * 64}))
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


def direct_nll(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """-log p(answer | prompt) in nats, from the logits of the whole row."""
    start = len(tokenizer(prompt).input_ids)
    ids = torch.tensor([tokenizer(prompt + answer).input_ids])
    logprobs = model(ids).logits[0].double().log_softmax(-1)
    return -sum(float(logprobs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))


def link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source, target_is_directory=True)


def make_adapter(base: Path, folder: Path, compose: Callable[..., RunConfig]) -> Path:
    """An adapter that changes what the base computes, as `train` leaves it."""
    model = adapters.attach_adapter(models.load_model(base), compose().adapter, 0)
    for _, layer in adapters.adapted_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    known = chain.check_base(base)
    stamp = chain.Stamp(
        base_hash=known.base_hash, original_hash=known.original_hash, stopped_at_step=7,
        first_weights_hash=adapters.hash_first_weights(model),
        **vars(chain.identify_rows(paths.PREPARED)),
    )  # fmt: skip
    adapters.save_adapter(model, folder, stamp)
    return folder


def make_merged(original: Path, folder: Path) -> Path:
    """The original, stamped as if it were what `merge` made of the adapter."""
    shutil.copytree(original, folder)
    merged_hash = identity.hash_weights(folder)
    stamp = chain.MergedStamp(
        merged_hash=merged_hash, added_to_hash=merged_hash,
        adapter=chain.read_stamp(paths.ADAPTER),
    )  # fmt: skip
    chain.write_stamp(folder, stamp)
    return folder


def write_project(nf4: Path, original: Path, compose: Callable[..., RunConfig]) -> None:
    """All that is evaluated, in the current directory."""
    write_prepared(paths.PREPARED, [" cold", " hot", " warm"])
    records.write_jsonl(paths.BENCHMARKS / "quiz.jsonl", QUESTIONS)
    records.write_jsonl(paths.BENCHMARKS / "prose.jsonl", TEXTS)
    link(paths.ORIGINAL, original)
    link(paths.QUANTIZED, nf4)
    make_adapter(paths.QUANTIZED, paths.ADAPTER, compose)
    make_merged(original, paths.MERGED)


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
