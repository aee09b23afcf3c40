"""Seeds vary apart, the same point repeats to the byte, and what does not repeat says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import CPU, ROOT

from bitrank import batches, composition, determinism, environment, records
from bitrank.projection import parse_yaml

Train = Callable[..., records.Record]


@pytest.fixture
def deterministic(compose: Callable[..., Any]) -> Iterator[torch.device]:
    """As every stage begins."""
    threads = torch.get_num_threads()
    yield environment.prepare_runtime(compose().runtime)
    torch.set_num_threads(threads)


def seeds_of(*overrides: str) -> dict[str, int]:
    found: dict[str, int] = parse_yaml(composition.compose_text(list(overrides), ROOT / "conf"))[
        "seeds"
    ]
    return found


def test_one_seed_sets_both_and_each_can_be_set_alone() -> None:
    assert seeds_of() == {"init": 0, "order": 0}
    assert seeds_of("seed=3") == {"init": 3, "order": 3}
    assert seeds_of("seed=3", "seeds.init=5") == {"init": 5, "order": 3}
    assert seeds_of("seeds.order=5") == {"init": 0, "order": 5}


def test_first_weights_and_order_of_the_rows_are_drawn_apart(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each seed changes what it is named for, to the last row and weight, and nothing else."""
    seen: list[list[list[int]]] = []
    collate = batches.collate

    def watch(rows: Any, pad_id: int) -> Any:
        seen[-1] += [row.input_ids for row in rows]
        return collate(rows, pad_id)

    monkeypatch.setattr(batches, "collate", watch)
    firsts = []
    for override in ("seed=0", "seeds.init=1", "seeds.order=1", "seed=1"):
        seen.append([])
        firsts.append(train("precision=fp32", override).result["first_weights_hash"])
    plain, init, order, both = seen
    assert init == plain
    assert order == both != plain
    assert sorted(order) == sorted(plain), "the same rows, each epoch"
    assert firsts[2] == firsts[0]
    assert firsts[1] == firsts[3] != firsts[0]


def test_a_training_on_a_cpu_says_that_it_repeats_and_does(train: Train) -> None:
    one, same = train("precision=nf4"), train("precision=nf4")
    assert one.treatment["determinism"]["deterministic"] is True
    assert "threads" in one.treatment["determinism"]["reason"]
    for part in ("treatment", "result"):
        texts = {records.canonical_json(getattr(record, part)) for record in (one, same)}
        assert len(texts) == 1, part


def test_an_operation_without_a_deterministic_form_is_named(deterministic: torch.device) -> None:
    with determinism.watching() as seen:
        for _ in range(2):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    assert seen == {"put_"}
    told = determinism.describe(deterministic, seen)
    assert told == {"deterministic": False, "reason": "no deterministic form on cpu: put_"}
    with determinism.watching() as silent:
        torch.ones(3) @ torch.ones(3)
    assert determinism.describe(deterministic, silent)["deterministic"] is True


def test_other_warnings_pass() -> None:
    with (
        pytest.warns(UserWarning, match="something else"),
        determinism.watching() as seen,
    ):
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert seen == set()


def test_what_nothing_can_tell_is_unknown(
    deterministic: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = determinism.describe(torch.device("cuda"), set())
    assert told["deterministic"] is None
    assert "kernels of other libraries" in told["reason"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = determinism.describe(deterministic, set())
    assert told["deterministic"] is None
    assert "2 processes" in told["reason"]
    monkeypatch.delenv("WORLD_SIZE")
    torch.use_deterministic_algorithms(False)
    told = determinism.describe(CPU, set())
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert told["deterministic"] is None
