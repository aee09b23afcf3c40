"""A few passes over three blocks tell what a trace of the whole model tells, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bitrank import config, estimate, multiplied
from bitrank.multiplied import Targets

Compose = Callable[..., config.RunConfig]
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 257,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": 6}
FALCON = {
    "model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 8,
    "vocab_size": 257, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False,
    "new_decoder_architecture": False, "max_position_embeddings": 2048,
}  # fmt: skip
BF16 = ("precision.weight_dtype=bfloat16", "precision.compute_dtype=bfloat16")
CHECKPOINTING = "train.gradient_checkpointing=true"
CASES: list[tuple[dict[str, Any], int | None, list[str]]] = [
    (LLAMA, None, ["precision=fp32", "adapter=full", CHECKPOINTING]),
    (LLAMA, 2, ["precision=nf4", *BF16, "adapter.rank=32"]),
    (LLAMA, None, ["precision=fp32", "adapter.use_dora=true", "train.optimizer=adamw_8bit"]),
    (LLAMA, None, ["precision=nf4", "adapter.layers=last 2"]),
    (QWEN, None, ["precision=int8", "train.global_batch_size=4"]),
    (FALCON, 3, ["precision=nf4", CHECKPOINTING]),
]


@pytest.mark.parametrize(("settings", "last", "overrides"), CASES)
def test_it_is_the_trace_of_the_whole_model(
    settings: dict[str, Any], last: int | None, overrides: list[str], compose: Compose
) -> None:
    run = compose(*overrides)
    treatment = run.precision, run.adapter, run.train
    step = multiplied.predict_steps(settings, *treatment, Targets(last=last))
    for rows, columns in ((1, 9), (5, 300)):
        shape = step.shape(rows, columns)
        whole = estimate.predict_phases(settings, *treatment, shape)
        assert step.predict(rows, columns) == whole["train"]
    others = multiplied.predict_others(settings, *treatment, shape)
    assert {phase: sum(parts.values()) for phase, parts in others.items()} == {
        phase: parts["peak_bytes"] for phase, parts in whole.items() if phase != "train"
    }


def test_more_rows_longer_rows_and_a_higher_rank_never_take_less(compose: Compose) -> None:
    def step(rank: int) -> multiplied.StepMemory:
        run = compose("precision=nf4", f"adapter.rank={rank}")
        return multiplied.predict_steps(
            LLAMA, run.precision, run.adapter, run.train, Targets(last=None)
        )

    low, high = step(4), step(16)
    sizes = (1, 2, 8, 64)
    for rows in sizes:
        peaks = [low.predict(rows, columns)["peak_bytes"] for columns in (2, 16, 33, 500)]
        assert peaks == sorted(peaks)
        assert len(set(peaks)) == len(peaks)
        assert low.predict(rows, 64)["peak_bytes"] < high.predict(rows, 64)["peak_bytes"]
    for columns in (2, 16, 500):
        peaks = [low.predict(rows, columns)["peak_bytes"] for rows in sizes]
        assert peaks == sorted(peaks)
        assert len(set(peaks)) == len(peaks)


def test_trained_tokens_alone_have_logits(compose: Compose) -> None:
    run = compose("precision=fp32", CHECKPOINTING)
    settings = {**LLAMA, "vocab_size": 50_000}
    treatment = run.precision, run.adapter, run.train
    every = multiplied.predict_steps(settings, *treatment, Targets(last=None)).predict(8, 128)
    few = multiplied.predict_steps(settings, *treatment, Targets(last=2)).predict(8, 128)
    logits = 4 * 8 * 50_000 * (127 - 2)
    assert every["peak_bytes"] - few["peak_bytes"] > logits


def test_work_counts_what_a_token_passes(compose: Compose) -> None:
    run = compose("precision=nf4", "adapter.rank=2")
    work = multiplied.predict_steps(
        LLAMA, run.precision, run.adapter, run.train, Targets(last=None)
    ).work
    block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    assert (work.blocks, work.block, work.head) == (7, block, 257 * 64)
    assert work.trained == 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
