"""Splits do not leak; what cannot be used is counted or named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bitrank import config, data, models, splitting
from bitrank.data_config import ChatFormat
from bitrank.errors import UserError
from bitrank.rows import RawRow

TOKENIZER = models.build_tiny(64, 1, 0)[1]
TOKENIZER.chat_template = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def raw(count: int, groups: int = 10, labels: int = 4) -> list[RawRow]:
    return [
        RawRow({"text": f"t{i}", "label": f"l{i % labels}"}, f"g{i % groups}", f"f:{i + 1}")
        for i in range(count)
    ]


def render(rows: Sequence[RawRow], sizes: config.DataConfig) -> list[data.Row]:
    return splitting.render_rows(rows, sizes, (sizes.prompt, sizes.answer), TOKENIZER)


def clean(rows: Sequence[RawRow], sizes: config.DataConfig) -> list[data.Row]:
    return splitting.clean_rows(render(rows, sizes)).rows


@pytest.fixture
def sizes(compose: Callable[..., config.RunConfig]) -> config.DataConfig:
    return dataclasses.replace(compose().data, num_train=40, num_validation=10, num_test=20)


def test_no_group_and_no_prompt_is_in_two_splits(sizes: config.DataConfig) -> None:
    splits = splitting.split_rows(clean(raw(200, groups=37), sizes), sizes)
    assert {name: len(kept) for name, kept in splits.items()} == {
        "train": 40, "validation": 10, "test": 20,
    }  # fmt: skip
    for attribute in ("group", "prompt"):
        seen = [{getattr(row, attribute) for row in kept} for kept in splits.values()]
        assert len(set().union(*seen)) == sum(len(values) for values in seen)


def test_the_split_seed_decides_and_nothing_else(sizes: config.DataConfig) -> None:
    rows = clean(raw(200, groups=37), sizes)
    again = splitting.split_rows(rows, sizes)
    other = splitting.split_rows(rows, dataclasses.replace(sizes, split_seed=1))
    assert splitting.split_rows(rows, sizes) == again
    assert {row.group for row in again["test"]} != {row.group for row in other["test"]}


def test_balance_draws_answers_evenly(sizes: config.DataConfig) -> None:
    uneven = [
        RawRow({"text": f"t{i}", "label": "rare" if i % 10 == 0 else "common"}, str(i), "f")
        for i in range(400)
    ]
    balanced = dataclasses.replace(sizes, balance=True)
    splits = splitting.split_rows(clean(uneven, balanced), balanced)
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
    cleaned = splitting.clean_rows(render(rows, sizes))
    assert [(row.prompt.split()[1], row.group) for row in cleaned.rows] == [
        ("same", "1"), ("fine", "5"),
    ]  # fmt: skip
    assert (cleaned.num_duplicates, cleaned.num_conflicts) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{"text": "a"}], r"^f:1: no field label, .* the row has text$"),
        ([{"text": "a", "label": " "}], r"^f:1: the answer is empty$"),
        ([{"label": "a"}, {"text": "b", "label": "c"}, {"text": "b"}],
         r"(?s)^2 rows cannot be used:\n  f:1: no field text.*\n  f:3: no field label"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(
    sizes: config.DataConfig, fields: list[dict[str, str]], message: str
) -> None:
    rows = [RawRow(row, "g", f"f:{n}") for n, row in enumerate(fields, start=1)]
    with pytest.raises(UserError, match=message):
        render(rows, sizes)


def test_too_few_rows_name_the_split(sizes: config.DataConfig) -> None:
    with pytest.raises(UserError, match=r"`data.num_\w+` asks for"):
        splitting.split_rows(clean(raw(50, groups=50), sizes), sizes)


def test_a_test_source_gives_the_whole_test_and_nothing_else(sizes: config.DataConfig) -> None:
    rows = clean(raw(60, groups=30), sizes)
    held_out = [data.Row(f"q{n}", " l1", f"h{n}") for n in range(20)]
    splits = splitting.split_rows(rows, sizes, held_out)
    assert set(splits["test"]) == set(held_out)
    assert len(splits["train"]) == 40
    assert not {row.prompt for row in splits["train"]} & {row.prompt for row in splits["test"]}


@pytest.mark.parametrize(
    ("leaked", "message"),
    [
        (data.Row("Text: t3\nLabel:", " l0", "h", where="test.csv:9"),
         r"^test.csv:9: stands in f:4 too: .* take it out of `data.rows` or `data.test.rows`$"),
        (data.Row("other", " l0", "g3", where="test.csv:9"), r"^test.csv:9: of one group with f:"),
    ],
)  # fmt: skip
def test_a_test_row_among_those_to_train_on_is_refused(
    sizes: config.DataConfig, leaked: data.Row, message: str
) -> None:
    rows = clean(raw(60), sizes)
    with pytest.raises(UserError, match=message):
        splitting.split_rows(rows, sizes, [data.Row("new", " l0", "h0"), leaked])


def split_of(train: list[str], test: list[str]) -> dict[str, list[data.Row]]:
    return {"train": [data.Row("p", a, "g") for a in train],
            "validation": [], "test": [data.Row("p", a, "g") for a in test]}  # fmt: skip


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (split_of([f" {i}" for i in range(300)], []), "data/task=generation takes them"),
        (split_of([" a"], [" a"]), "only one answer"),
        (split_of([" a", " b"], [" c"]), "no training row has the answer ' c'"),
    ],
)
def test_choices_that_make_no_classification_are_refused(splits: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        splitting.list_choices(splits)


def test_a_label_that_begins_another_is_refused() -> None:
    splitting.refuse_prefixes([" no", " yes", " on"], "p", TOKENIZER)
    with pytest.raises(UserError, match="label 'no' begins the label 'not sure'"):
        splitting.refuse_prefixes([" not sure", " yes", " no"], "p", TOKENIZER)


def test_an_answer_with_a_stop_in_it_is_refused() -> None:
    rows = [data.Row("p", " a", "g"), data.Row("p", " a\nb", "g", where="mine:2")]
    splitting.refuse_stops(rows, [])
    with pytest.raises(
        UserError, match=r"^mine:2: the answer ' a\\nb' holds '\\n'.*data.task.stop"
    ):
        splitting.refuse_stops(rows, ["\n"])


def chat(sizes: config.DataConfig, **options: Any) -> config.DataConfig:
    layout = ChatFormat(kind="chat", **{"system": None, "messages_field": None, **options})
    return dataclasses.replace(sizes, format=layout)


def test_a_chat_is_the_templates_as_two_turns(sizes: config.DataConfig) -> None:
    (row,) = render(raw(1), chat(sizes, system="be brief"))
    assert row.prompt == "system: be brief<|end|>\nuser: Text: t0\nLabel:<|end|>\nassistant: "
    assert (row.answer, row.end, row.where) == ("l0", "", "f:1")


def test_conversations_keep_their_own_system_message(sizes: config.DataConfig) -> None:
    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = [{"role": "system", "content": "own"}, *pair, *pair]
    made = render(
        [RawRow({"messages": own}, "g", "f:1"), RawRow({"messages": pair}, "g", "f:2")],
        chat(sizes, system="ours", messages_field="messages"),
    )
    assert made[0].prompt.startswith("system: own<|end|>\nuser: a")
    assert made[1].prompt.startswith("system: ours<|end|>\nuser: a")
    assert [made[0].prompt[start:stop] for start, stop in made[0].earlier] == ["b<|end|>"]
    with pytest.raises(UserError, match=r"f:3: no field messages; `data.format.messages_field`"):
        render([RawRow({"text": "a"}, "g", "f:3")], chat(sizes, messages_field="messages"))
