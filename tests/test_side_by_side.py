"""Parts on threads of their own give what they give one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from conftest import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prefix_trees import GATED, READERS, build

from bitrank import harness, models, padded_batches, side_by_side


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_order_from_threads_that_share_those_of_torch() -> None:
    meeting = threading.Barrier(2, timeout=60)  # passed only where two parts run at once

    def compute(part: int) -> tuple[int, int]:
        meeting.wait()
        return part, torch.get_num_threads()

    assert list(side_by_side.compute_all(compute, range(8), 2)) == [(n, 2) for n in range(8)]
    assert torch.get_num_threads() == 4
    in_new_thread: list[int] = []
    later = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert in_new_thread == [4]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_that_nobody_took_do_not_pile_up(workers: int) -> None:
    begun: list[int] = []
    results = side_by_side.compute_all(begun.append, range(50), workers)
    for _ in range(3):
        next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 3 + workers + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_the_fault_of_a_part_is_the_caller_s(workers: int) -> None:
    results = side_by_side.compute_all(lambda part: 1 // part, [1, 0, 1], workers)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    batch_size=st.integers(1, 12),
    workers=st.integers(1, 5),
)
def test_slices_are_those_of_the_batches(lengths: list[int], batch_size: int, workers: int) -> None:
    rows = [(number, *range(length - 1)) for number, length in enumerate(lengths)]
    whole = list(padded_batches.cut(rows, batch_size, 1))
    parts = list(padded_batches.cut(rows, batch_size, workers))
    width_of = {row: batch.width for batch in whole for row in batch.rows}
    assert [row for part in parts for row in part.rows] == [row for b in whole for row in b.rows]
    assert sorted(width_of) == sorted(rows)
    for batch in whole:
        assert batch.width == max(map(len, batch.rows))
        own = [part for part in parts if set(part.rows) <= set(batch.rows)]
        assert 1 <= len(own) <= workers
        assert len(own) == 1 or all(
            len(part.rows) * part.width >= padded_batches.FEWEST_ROWS for part in own
        )
    assert all(part.width == width_of[row] for part in parts for row in part.rows)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("is_text", [False, True])
def test_answers_are_those_of_one_pass_after_the_other(
    name: str, is_text: bool, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts to the last digit; trees too, which are the same ones."""
    scorer = harness.Scorer(build(READERS[name]), models.load_tokenizer(original), 8)
    generator = torch.Generator().manual_seed(5)
    rows = [
        torch.randint(3, 97, (length,), generator=generator).tolist() for length in range(20, 60)
    ]
    requests = [(None if is_text else ("", ""), row[:9], row[9:]) for row in rows]
    together = [scorer._loglikelihood_tokens(requests) for _ in range(2)]
    monkeypatch.setattr(side_by_side, "count_workers", lambda *_: 1)
    torch.set_num_threads(1)
    apart = scorer._loglikelihood_tokens(requests)
    assert together == [apart, apart]


@pytest.mark.usefixtures("four_threads")
def test_a_model_that_a_forward_pass_changes_is_read_by_one_worker(
    quantized: Callable[[str], Path],
) -> None:
    llama = {**GATED, "max_position_embeddings": 64}
    assert side_by_side.count_workers(build(transformers.LlamaConfig(**llama)), CPU) == 4
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**llama, rope_parameters=scaled)
    assert side_by_side.count_workers(build(config), CPU) == 1
    for name in ("int8", "nf4"):
        assert side_by_side.count_workers(models.load_model(quantized(name), CPU), CPU) == 1
    assert side_by_side.count_workers(build(READERS["llama"]).bfloat16(), CPU) == 1
    assert side_by_side.count_workers(build(READERS["llama"]), torch.device("cuda")) == 1
