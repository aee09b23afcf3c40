"""Pinned members become documents, the same ones each time, and what is dropped is counted."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bitrank import benchmarks, identity, records
from bitrank.errors import UserError
from bitrank.pins import Benchmark

GOOD = [
    {"question": f"q{n}", "options": f"A. left {n} \nB. right {n}", "answer": f"B. right {n}"}
    for n in range(8)
]
BAD = [
    {"question": "no such answer", "options": "A. x\nB. y", "answer": "C. z"},
    {"question": "the letter is another", "options": "A. x\nB. y", "answer": "A. y"},
    {"question": "letters out of order", "options": "B. x\nA. y", "answer": "A. y"},
    {"question": "twice the same", "options": "A. x\nB. x", "answer": "A. x"},
    {"question": "nothing to choose", "options": "A. x", "answer": "A. x"},
    {"question": "an empty option", "options": "A. x\nB. ", "answer": "A. x"},
]
LINES = [{"text": f"line {n} has five words"} for n in range(20)]


def pinned(folder: Path, layout: Any, rows: list[dict[str, Any]], num_items: int) -> Benchmark:
    """A benchmark whose wheel already lies among the downloads."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made/set.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    sha256 = identity.hash_file(wheel)
    wheel.rename(folder / f"{sha256}.whl")
    return Benchmark(package="made", version="1", sha256=sha256, member="made/set.jsonl",
                     name=layout, format=layout, num_items=num_items)  # fmt: skip


def test_lettered_options_become_choices(tmp_path: Path) -> None:
    pin = pinned(tmp_path / "downloads", "lettered_options", GOOD + BAD, 5)
    record = benchmarks.prepare_benchmarks([pin], tmp_path / "out", tmp_path / "downloads")
    documents = records.read_jsonl(tmp_path / "out" / "lettered_options.jsonl")
    assert len(documents) == 5
    for document in documents:
        number = document["question"].removeprefix("q")
        assert document["choices"] == [f"left {number}", f"right {number}"]
        assert document["gold"] == 1
    counts = record.result["benchmarks"]["lettered_options"]
    assert counts["num_rows_read"] == len(GOOD) + len(BAD)
    assert counts["num_rows_dropped"] == len(BAD)
    assert counts["num_items"] == 5


@pytest.mark.parametrize("row", BAD, ids=lambda row: row["question"])
def test_a_row_without_one_right_answer_is_dropped(row: dict[str, Any]) -> None:
    assert benchmarks.read_lettered_options([row]) == ([], 1)


def test_short_lines_are_joined_into_texts(tmp_path: Path) -> None:
    long = {"text": "word " * 40}
    documents, left_over = benchmarks.read_text_lines([*LINES, {"text": " "}, long, LINES[0]])
    assert all(len(d["text"].split()) >= benchmarks.FEWEST_WORDS for d in documents)
    joined = " ".join(document["text"] for document in documents)
    assert joined == " ".join([*(line["text"] for line in LINES), long["text"].strip()])
    assert left_over == 2, "the empty row and the last, too short one"


def test_a_set_is_the_same_each_time_and_a_smaller_one_is_its_beginning(tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    pin = pinned(downloads, "lettered_options", GOOD, 8)
    for folder in ("one", "two"):
        benchmarks.prepare_benchmarks([pin], tmp_path / folder, downloads)
    assert identity.hash_files(tmp_path / "one") == identity.hash_files(tmp_path / "two")
    fewer = dataclasses.replace(pin, num_items=3)
    benchmarks.prepare_benchmarks([fewer], tmp_path / "three", downloads)
    taken = records.read_jsonl(tmp_path / "three" / "lettered_options.jsonl")
    every = records.read_jsonl(tmp_path / "one" / "lettered_options.jsonl")
    assert taken == every[:3]
    assert [document["question"] for document in every] != [row["question"] for row in GOOD]


def test_the_index_lists_what_is_there(tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    pins = [
        pinned(downloads, "text_lines", LINES, 2),
        pinned(downloads, "lettered_options", GOOD, 4),
    ]
    record = benchmarks.prepare_benchmarks(pins, tmp_path / "out", downloads)
    index = json.loads((tmp_path / "out" / benchmarks.INDEX).read_text())
    assert [entry["name"] for entry in index] == ["text_lines", "lettered_options"]
    for entry in index:
        file = tmp_path / "out" / f"{entry['name']}.jsonl"
        assert entry["sha256"] == identity.hash_file(file)
        assert entry["sha256"] == record.result["benchmarks"][entry["name"]]["sha256"]
        assert entry["num_items"] == len(records.read_jsonl(file))


def test_without_benchmarks_there_is_still_an_index(tmp_path: Path) -> None:
    record = benchmarks.prepare_benchmarks([], tmp_path / "out", tmp_path / "downloads")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [benchmarks.INDEX]
    assert json.loads((tmp_path / "out" / benchmarks.INDEX).read_text()) == []
    assert record.result == {"benchmarks": {}}


def test_too_few_documents_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    pin = pinned(tmp_path / "downloads", "text_lines", LINES, 200)
    with pytest.raises(UserError, match=r"text_lines holds 4 usable .* `num_items` asks for 200"):
        benchmarks.prepare_benchmarks([pin], tmp_path / "out", tmp_path / "downloads")
    assert not (tmp_path / "out").exists()
