"""Trees hold the rows that went in, and a model gives in them what it gives to rows alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from conftest import CPU
from hypothesis import given, settings
from hypothesis import strategies as st

from bitrank import hardware, harness, models, prefix_trees, weights

ROW = tuple(range(3, 23))
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GATED = {**SIZES, "intermediate_size": 48}
READERS = {
    "llama": transformers.LlamaConfig(**GATED, num_key_value_heads=2),
    "qwen2": transformers.Qwen2Config(**GATED, num_key_value_heads=2),
    "mistral": transformers.MistralConfig(**GATED, num_key_value_heads=2, sliding_window=64),
    "falcon": transformers.FalconConfig(**SIZES),
    "gpt_neox": transformers.GPTNeoXConfig(**GATED),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
}
OTHERS = {
    "a window": transformers.MistralConfig(**GATED, num_key_value_heads=2, sliding_window=8),
    "positions from the mask": transformers.FalconConfig(**SIZES, alibi=True),
    "no positions": transformers.MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4),
    "recurrent": transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2),
}


def build(config: transformers.PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.frozen(transformers.AutoModelForCausalLM.from_config(config))


def alone(model: torch.nn.Module, row: prefix_trees.Row, count: int) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([row])).logits[0, -count:]
    return logits


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1),
    most_rows=st.integers(1, 5),
)
def test_a_tree_holds_each_beginning_once(rows: set[prefix_trees.Row], most_rows: int) -> None:
    trees = list(prefix_trees.grow(list(rows), most_rows))
    assert sorted(row for tree in trees for row in tree.rows) == sorted(rows)
    for tree in trees:
        assert len(tree.rows) <= most_rows
        assert len(tree.tokens) == len({row[: n + 1] for row in tree.rows for n in range(len(row))})
        mask, depths = tree.mask(), tree.depths()
        for row, path in zip(tree.rows, tree.paths, strict=True):
            assert tuple(tree.tokens[node] for node in path) == row
            assert depths[path].tolist() == list(range(len(row)))
            for depth, node in enumerate(path):
                assert mask[node].nonzero().flatten().tolist() == path[: depth + 1]


def test_long_rows_share_a_tree_only_where_they_are_alike() -> None:
    start = tuple(range(prefix_trees.NODES))
    choices = [(*start, 1, 2), (*start, 3), (*start, 4, 5, 6)]
    (tree,) = prefix_trees.grow(choices, 32)
    assert len(tree.tokens) == len(start) + 6
    others = [tuple(range(n, n + prefix_trees.NODES)) for n in range(3)]
    assert [len(tree.rows) for tree in prefix_trees.grow(others, 32)] == [1, 1, 1]


@pytest.mark.parametrize("name", READERS)
def test_logits_are_those_of_rows_alone(name: str) -> None:
    model = build(READERS[name])
    assert prefix_trees.reads_trees(model, ROW, CPU)
    rows = [ROW, ROW[:7], (*ROW[:7], 50, 51), (*ROW[:12], 80), (60, 61, 62)]
    (tree,) = prefix_trees.grow(rows, 32)
    counts = [min(3, len(row)) for row in tree.rows]
    found = prefix_trees.target_logits(model, tree, counts, CPU)
    for row, count, logits in zip(tree.rows, counts, found, strict=True):
        torch.testing.assert_close(logits, alone(model, row, count), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_does_not_read_trees_is_found_out(name: str) -> None:
    assert not prefix_trees.reads_trees(build(OTHERS[name]), ROW, CPU)


def test_rows_stay_apart_where_rounding_is_coarse(quantized: Callable[[str], Path]) -> None:
    assert not prefix_trees.reads_trees(build(READERS["llama"]).bfloat16(), ROW, CPU)
    assert not prefix_trees.reads_trees(models.load_model(quantized("int8"), CPU), ROW, CPU)
    model = models.load_model(quantized("nf4"), CPU)
    if "avx512_bf16" not in hardware.cpu_features():  # where bitsandbytes multiplies in bf16
        assert prefix_trees.reads_trees(model, ROW, CPU)
    for layer in weights.linear_layers(model).values():
        layer.compute_dtype = torch.bfloat16
    assert not prefix_trees.reads_trees(model, ROW, CPU)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_answers_do_not_depend_on_trees_or_batches(
    original: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = models.load_model(original), models.load_tokenizer(original)
    start = "a question that is long enough to share"
    texts = [f"{start}{end}" for end in ("", " and", " and more", " or not")]
    requests = [
        (pair, tokenizer(pair[0]).input_ids, tokenizer(pair[1]).input_ids)
        for pair in [(text, choice) for text in texts for choice in ("A", "B", " cold", " colder")]
    ]
    scorer = harness.Scorer(model, tokenizer, batch_size)
    shared = scorer._loglikelihood_tokens(requests)
    assert shared == scorer._loglikelihood_tokens(requests[::-1])[::-1]
    monkeypatch.setattr(prefix_trees, "reads_trees", lambda *_: False)
    apart = scorer._loglikelihood_tokens(requests)
    assert [value for value, _ in shared] == pytest.approx([v for v, _ in apart], abs=1e-4)
    assert [greedy for _, greedy in shared] == [greedy for _, greedy in apart]
    assert any(one[0] != other[0] for one, other in pairwise(shared))
