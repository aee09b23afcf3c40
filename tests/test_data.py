"""Splits do not leak; what cannot be used is counted or named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bitrank import config, data, models, paths
from bitrank.errors import UserError
from bitrank.rows import RawRow, jsonl


def raw(count: int, groups: int = 10, labels: int = 4) -> list[RawRow]:
    return [
        RawRow({"text": f"t{i}", "label": f"l{i % labels}"}, f"g{i % groups}", f"f:{i + 1}")
        for i in range(count)
    ]


@pytest.fixture
def sizes(compose: Callable[..., config.RunConfig]) -> config.DataConfig:
    return dataclasses.replace(compose().data, num_train=40, num_validation=10, num_test=20)


def test_no_group_and_no_prompt_is_in_two_splits(sizes: config.DataConfig) -> None:
    rows = data.clean_rows(raw(200, groups=37), sizes).rows
    splits = data.split_rows(rows, sizes)
    assert {name: len(kept) for name, kept in splits.items()} == {
        "train": 40, "validation": 10, "test": 20,
    }  # fmt: skip
    for attribute in ("group", "prompt"):
        seen = [{getattr(row, attribute) for row in kept} for kept in splits.values()]
        assert len(set().union(*seen)) == sum(len(values) for values in seen)


def test_the_split_seed_decides_and_the_order_of_the_file_does_not(
    sizes: config.DataConfig,
) -> None:
    rows = data.clean_rows(raw(200, groups=37), sizes).rows
    again = data.split_rows(rows, sizes)
    other = data.split_rows(rows, dataclasses.replace(sizes, split_seed=1))
    assert data.split_rows(rows, sizes) == again
    assert {row.group for row in again["test"]} != {row.group for row in other["test"]}


def test_balance_draws_answers_evenly(sizes: config.DataConfig) -> None:
    uneven = [
        RawRow({"text": f"t{i}", "label": "rare" if i % 10 == 0 else "common"}, str(i), "f")
        for i in range(400)
    ]
    balanced = dataclasses.replace(sizes, balance=True)
    splits = data.split_rows(data.clean_rows(uneven, balanced).rows, balanced)
    counts = data.count_answers(splits["train"])
    assert sum(counts.values()) == 40
    assert abs(counts[" rare"] - counts[" common"]) <= 1


def test_duplicates_and_contradictions_are_removed_and_counted(
    sizes: config.DataConfig,
) -> None:
    rows = [
        RawRow({"text": "same", "label": "a"}, "1", "f:1"),
        RawRow({"text": "same", "label": "a"}, "2", "f:2"),
        RawRow({"text": "torn", "label": "a"}, "3", "f:3"),
        RawRow({"text": "torn", "label": "b"}, "4", "f:4"),
        RawRow({"text": "fine", "label": "b"}, "5", "f:5"),
    ]
    cleaned = data.clean_rows(rows, sizes)
    assert [(row.prompt.split()[1], row.group) for row in cleaned.rows] == [
        ("same", "1"), ("fine", "5"),
    ]  # fmt: skip
    assert (cleaned.num_duplicates, cleaned.num_conflicts) == (1, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        ([RawRow({"text": "a"}, "g", "mine.jsonl:3")], "mine.jsonl:3: no field label"),
        ([RawRow({"text": "a", "label": " "}, "g", "mine.jsonl:4")], "mine.jsonl:4: the answer"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    sizes: config.DataConfig, rows: list[RawRow], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        data.clean_rows(rows, sizes)


def test_too_few_rows_name_the_split(sizes: config.DataConfig) -> None:
    rows = data.clean_rows(raw(50, groups=50), sizes).rows
    with pytest.raises(UserError, match=r"`data.num_\w+` asks for"):
        data.split_rows(rows, sizes)


def split_of(train: list[str], test: list[str]) -> dict[str, list[data.Row]]:
    return {"train": [data.Row("p", a, "g") for a in train],
            "validation": [], "test": [data.Row("p", a, "g") for a in test]}  # fmt: skip


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (split_of([f" {i}" for i in range(300)], []), "free text"),
        (split_of([" a"], [" a"]), "only one answer"),
        (split_of([" a", " b"], [" c"]), "no training row has the answer ' c'"),
    ],
)
def test_choices_that_make_no_classification_are_refused(splits: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.list_choices(splits)


def test_an_answer_that_does_not_fit_names_file_and_line(tmp_path: Path) -> None:
    tokenizer = models.build_tiny(64, 1, 0)[1]
    path = tmp_path / "train.jsonl"
    data.write_split(path, [data.Row("p", " a", "g"), data.Row("p", " " + "b" * 50, "g")])
    assert data.read_split(path)[0] == data.Row("p", " a", "g")
    with pytest.raises(UserError, match=r"train\.jsonl:2: the answer"):
        data.encode_split(path, tokenizer, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"\n', r"rows.jsonl:1: not JSON"),
        (b'{"id": "a"}\n\n[1]\n', r"rows.jsonl:3: must be a JSON object"),
        (b'{"text": "\xff"}\n', "not UTF-8"),
        (b'{"text": "a"}\n', "rows.jsonl:1: no field id, which `data.rows.group_field`"),
    ],
)
def test_a_broken_file_of_the_users_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    pin = config.JsonlRows(kind="jsonl", path=str(path), group_field="id", watch=str(path))
    with pytest.raises(UserError, match=message):
        jsonl.load(pin, tmp_path)


def test_prepare_writes_what_it_says(prepared: Path) -> None:
    choices = data.read_choices(prepared)
    assert choices == [" cool", " neutral", " warm"]
    for split in paths.SPLITS:
        assert {row.answer for row in data.read_split(paths.split(split, prepared))} <= set(choices)
    first = json.loads((prepared / "test.jsonl").read_text().splitlines()[0])
    assert set(first) == {"prompt", "answer", "group"}
