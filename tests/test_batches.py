"""Batches waste little, lose no row, and the loss is the mean over supervised tokens only."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bitrank import batches, models
from bitrank.prompts import IGNORED, Encoded

MODEL, TOKENIZER = models.build_tiny(64, 2, 0)


def row(length: int, answer: int) -> Encoded:
    ids = [(7 * length + 3 * i) % 250 for i in range(length)]
    return Encoded(ids, [IGNORED] * (length - answer) + ids[length - answer :], False)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_the_order_is_a_permutation_that_the_seed_decides(
    lengths: list[int], size: int, seed: int
) -> None:
    order = batches.bucketed_order(lengths, size, seed)
    assert sorted(order) == list(range(len(lengths)))
    assert order == batches.bucketed_order(lengths, size, seed)


def test_buckets_hold_rows_of_nearly_one_length_and_seeds_differ() -> None:
    lengths = [i % 40 + 1 for i in range(400)]
    order = batches.bucketed_order(lengths, 10, 0)
    padded = sum(
        10 * max(lengths[i] for i in order[start : start + 10]) for start in range(0, 400, 10)
    )
    assert padded == sum(lengths), "ten rows of each length: no padding is needed"
    assert order != batches.bucketed_order(lengths, 10, 1)


def test_loss_equals_that_of_the_full_logits_on_supervised_positions() -> None:
    rows = [row(9, 2), row(14, 5), row(11, 1)]
    batch = batches.collate(rows, TOKENIZER.pad_token_id)
    with torch.no_grad():
        logits = MODEL(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        reference = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
        )
        assert torch.allclose(batches.supervised_loss(MODEL, batch), reference, atol=1e-6)


def test_padding_changes_no_loss() -> None:
    short, long = row(6, 2), row(30, 3)
    with torch.no_grad():
        alone = batches.supervised_loss(MODEL, batches.collate([short], 0), 1)
        both = batches.supervised_loss(MODEL, batches.collate([short, long], 0), 1)
        other = batches.supervised_loss(MODEL, batches.collate([long], 0), 1)
    assert torch.allclose(alone + other, both, atol=1e-4)


def test_parts_of_a_global_batch_add_up_to_the_whole() -> None:
    rows = [row(9, 1), row(12, 4), row(10, 2), row(15, 3)]
    targets = sum(r.num_supervised for r in rows)
    with torch.no_grad():
        whole = batches.supervised_loss(MODEL, batches.collate(rows, 0))
        parts = [batches.supervised_loss(MODEL, batches.collate(rows[i : i + 2], 0), targets)
                 for i in (0, 2)]  # fmt: skip
    assert torch.allclose(whole, parts[0] + parts[1], atol=1e-6)


def test_tokens_are_counted_by_kind() -> None:
    batch = batches.collate([row(5, 2), row(8, 1)], 0)
    assert batches.count_tokens(batch) == {"padded": 16, "non_padding": 13, "supervised": 3}


def test_the_last_column_is_not_read_and_changes_nothing() -> None:
    batch = batches.collate([row(9, 1), row(12, 4)], 0)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -1] = 1
    with torch.no_grad():
        losses = [batches.supervised_loss(MODEL, each) for each in (batch, other)]
    assert torch.equal(*losses)
