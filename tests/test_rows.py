"""Rows of every kind come in with their places; what is broken is told with line and cure."""

from __future__ import annotations

import json
import random
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrank import identity, rows
from bitrank.errors import UserError
from bitrank.pins import (
    CsvRows,
    HubRows,
    IntentsRows,
    JsonlRows,
    NoRows,
    ParquetRows,
)
from bitrank.rows import sentences


def load(path: Path, kind: type = CsvRows, group: str | None = None, **more: Any) -> rows.Loaded:
    if kind is CsvRows:
        more = {"delimiter": ",", **more}
    name = {CsvRows: "csv", JsonlRows: "jsonl", ParquetRows: "parquet"}[kind]
    pin = kind(kind=name, path=str(path), group_field=group, watch=str(path), **more)
    return rows.load(pin, "data.rows", path.parent)


def test_csv_cells_may_hold_anything_between_quotes(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes('\ufefftext,label,who\r\n"a, ""b""\r\nc",warm,x\r\n\r\nd,cool,y\r\n'.encode())
    loaded = load(path, group="who")
    assert [dict(row.fields) for row in loaded.rows] == [
        {"text": 'a, "b"\r\nc', "label": "warm", "who": "x"},
        {"text": "d", "label": "cool", "who": "y"},
    ]
    assert [(row.group, row.where) for row in loaded.rows] == [
        ("x", f"{path}:2"),
        ("y", f"{path}:5"),
    ]
    assert loaded.origin == {"sha256": identity.hash_file(path)}


def test_another_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text;label\na,b;warm\n")
    assert load(path, delimiter=";").rows[0].fields == {"text": "a,b", "label": "warm"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"text,label\na,b\na\n\nb,c,d\n",
            r"(?s)2 rows .*csv:3: 1 cells, .* 2 columns.*csv:5: 3 cel",
        ),
        (b'text,label\na,b\n"open,c\nd,e\n', r"mine.csv:3: not CSV .* must close it"),
        (b'text,label\n"a"b,c\n', r"mine.csv:2: not CSV"),
        (b"text,label\na,b\ncaf\xe9,d\n", r"mine.csv:3: not UTF-8 text .*; save the file as UTF-8"),
        (b"text,text\na,b\n", r"mine.csv:1: each column needs a name of its own"),
        (b"", r"`data.rows`: there are no rows"),
        (b"text,label\n", r"`data.rows`: there are no rows"),
    ],
)
def test_a_broken_table_is_named_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"\n', r"rows.jsonl:1: not JSON"),
        (b'{"id": "a"}\n\n[1]\n', r"rows.jsonl:3: must be a JSON object"),
        (b'{"id": "a"}\n{"text": "\xff"}\n', r"rows.jsonl:2: not UTF-8"),
        (b'{"text": "a"}\n', "rows.jsonl:1: no field id, which `rows.group_field`"),
        (b'{"id": 1\n{"id": 2}\n{"id"}\n', r"(?s)2 rows cannot be used:.*:1: not J.*:3: not JSON"),
        (b"\n\n", "`data.rows`: there are no rows"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path, JsonlRows, group="id")


def test_a_line_ends_where_json_says_it_does(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "one\u2028line\x85still"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row.fields["text"] for row in load(path, JsonlRows).rows] == [text]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" * 25)
    with pytest.raises(
        UserError, match=r"(?s)^25 rows cannot.*:10: not JSON.*and 15 more$"
    ) as told:
        load(path, JsonlRows)
    assert ":11:" not in str(told.value)


def test_parquet_gives_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    written = [{"text": "a", "turns": [{"role": "user"}]}, {"text": "b", "turns": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(written), path)
    loaded = load(path, ParquetRows)
    assert [row.fields for row in loaded.rows] == written
    assert [row.where for row in loaded.rows] == [f"{path}:1", f"{path}:2"]
    path.write_text("text,label\n")
    with pytest.raises(UserError, match=r"mine\.parquet is not a Parquet file"):
        load(path, ParquetRows)


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`data\.rows\.path`: .*gone\.csv is not a file"):
        load(tmp_path / "gone.csv")


def test_no_source_of_its_own_has_no_rows_and_is_no_fault(tmp_path: Path) -> None:
    assert not rows.load(NoRows(kind="none", watch="x"), "data.test.rows", tmp_path).rows


HUB = HubRows(kind="hub", repo="org/set", config="main", split="train", revision="v2",
              group_field="id", watch="x")  # fmt: skip


class FakeHub:
    """What `datasets` and the hub answer; keeps what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Exception | None = None) -> None:
        from bitrank.rows import hub

        self.asked: dict[str, Any] = {}
        self.fault = fault
        monkeypatch.setattr(hub, "HfApi", lambda: self)
        monkeypatch.setattr(hub, "load_dataset", self.load_dataset)

    def dataset_info(self, repo: str, revision: str) -> Any:
        self.asked["revision"] = revision
        return type("Info", (), {"sha": "c0ffee"})()

    def load_dataset(self, *names: Any, **options: Any) -> Any:
        if self.fault:
            raise self.fault
        self.asked |= {"names": names, **{f"load_{key}": value for key, value in options.items()}}
        return [{"id": 7, "text": "a"}, {"id": 8, "text": "b"}]


def test_a_dataset_of_the_hub_is_read_at_a_commit_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch)
    loaded = rows.load(HUB, "data.rows", tmp_path)
    assert hub.asked == {"revision": "v2", "names": ("org/set", "main"), "load_split": "train",
                         "load_revision": "c0ffee"}  # fmt: skip
    assert loaded.origin == {"commit": "c0ffee"}
    assert [(row.group, row.where) for row in loaded.rows] == [
        ("7", "org/set:train:1"), ("8", "org/set:train:2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (ValueError("BuilderConfig 'main' not found. Available: ['a']"), r"Available: \['a'\]"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer"),
        (ConnectionError("no route"), r"cannot be downloaded \(ConnectionError\).*data=jsonl"),
    ],
)
def test_what_the_hub_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, message: str
) -> None:
    FakeHub(monkeypatch, fault)
    with pytest.raises(UserError, match=message):
        rows.load(HUB, "data.rows", tmp_path)


def test_the_hub_is_not_reached_offline(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"org/set cannot be downloaded \(Offline"):
        rows.load(HUB, "data.rows", tmp_path)


LANGUAGE = {
    "intents": {
        "HassLightSet": {"data": [{
            "sentences": ["[please] set [<the>] {name} to {level:brightness}[[ ]%]",
                          "({name};now) {shade:color}"],
            "slots": {"domain": "light"}, "requires_context": {"domain": ["light"]},
        }]},
        "HassNevermind": {"data": [{"sentences": ["never[ ]mind|forget it"]}]},
    },
    "lists": {
        "level": {"range": {"from": 10, "to": 30, "step": 10, "multiplier": -1}},
        "shade": {"values": [{"in": "(crimson|deep red)", "out": "red"}]},
    },
    "expansion_rules": {"the": "(the|my)"},
}  # fmt: skip


@pytest.fixture
def intents(tmp_path: Path) -> IntentsRows:
    """A pin whose wheel lies in the downloads folder already."""
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pack/en.json", json.dumps(LANGUAGE))
    sha256 = identity.hash_file(wheel)
    wheel.rename(tmp_path / f"{sha256}.whl")
    return IntentsRows(kind="intents", package="pack", version="1", sha256=sha256, watch="x",
                       member="pack/en.json", sentences_per_template=6, draw_seed=0)  # fmt: skip


def test_commands_and_answers_agree(
    intents: IntentsRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    loaded = rows.load(intents, "data.rows", tmp_path).rows
    light = [row for row in loaded if row.fields["intent"] == "HassLightSet"]
    for row in light:
        intent, _, told = row.fields["answer"].partition(" ")
        slots = dict(pair.split("=") for pair in told.split(", "))
        assert intent == "HassLightSet"
        assert list(slots) == sorted(slots)
        assert slots["domain"] == "light"
        assert slots["name"] in row.fields["text"]
        if "brightness" in slots:
            assert slots["brightness"].removeprefix("-") in row.fields["text"]
            assert int(slots["brightness"]) in (-10, -20, -30)
        else:
            assert slots["color"] == "red"
    assert {row.fields["text"] for row in loaded if row not in light} == {
        "nevermind", "never mind", "forget it",
    }  # fmt: skip
    assert {row.fields["answer"] for row in loaded if row not in light} == {"HassNevermind"}


def test_commands_are_drawn_again_alike_and_grouped_by_template(
    intents: IntentsRows, tmp_path: Path
) -> None:
    loaded = rows.load(intents, "data.rows", tmp_path).rows
    assert rows.load(intents, "data.rows", tmp_path).rows == loaded
    other = IntentsRows(**{**vars(intents), "draw_seed": 1})
    assert rows.load(other, "data.rows", tmp_path).rows != loaded
    templates = [s for i in LANGUAGE["intents"].values() for b in i["data"] for s in b["sentences"]]
    assert {row.group for row in loaded} == set(templates)
    texts = [(row.group, row.fields["text"]) for row in loaded]
    assert len(set(texts)) == len(texts)


NOTHING = sentences.Grammar({}, lambda name, draw: (name, name))


@given(seed=st.integers(0, 200))
def test_a_template_gives_what_its_signs_say(seed: int) -> None:
    draw = random.Random(seed)
    said, slots = sentences.draw_sentence("a[ b] (c|{d:e}) (f;g[h])", NOTHING, draw)
    assert said in {
        f"a{b} {c} {tail}"
        for b in ("", " b") for c in ("c", "d") for tail in ("f g", "f gh", "g f", "gh f")
    }  # fmt: skip
    assert slots == ({"e": "d"} if " d " in said else {}), "a slot that is not said is not filled"


@pytest.mark.parametrize("template", ["a (b", "a [b)", "a {b", "(a|b;c)", "a)"])
def test_a_template_that_is_not_well_formed_is_refused(template: str) -> None:
    with pytest.raises(ValueError):
        sentences.draw_sentence(template, NOTHING, random.Random(0))
