"""The `benchmarks` stage: pinned evaluation sets, from a package to documents to be scored.

They show what was forgotten: nothing was trained on them. Which documents are taken is fixed by a
shuffle with a seed of its own that no configuration changes, so all runs of a set are comparable.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitrank import identity, paths, records, wheels
from bitrank.artifacts import whole_folder
from bitrank.errors import UserError
from bitrank.pins import Benchmark

SHUFFLE_SEED = 0
FEWEST_WORDS = 24
"""Least length of a text: the perplexity of three words is mostly that of their beginning."""

INDEX = "index.json"
Document = dict[str, Any]

_OPTION = re.compile(r"([A-Z])\. ")


def prepare_benchmarks(
    pins: Sequence[Benchmark],
    target: Path = paths.BENCHMARKS,
    downloads: Path = paths.DOWNLOADS,
) -> records.Record:
    """Write `<name>.jsonl` for each benchmark, and `index.json` with their names, sizes and hashes.

    The index is there without any benchmark too: DVC does not track an empty folder.

    Raises:
        UserError: a package that cannot be had or is not the pinned one, or too few documents.
    """
    results: dict[str, dict[str, Any]] = {}
    with whole_folder(target) as folder:
        for pin in pins:
            documents, counts = _take(pin, downloads)
            file = folder / f"{pin.name}.jsonl"
            records.write_jsonl(file, documents)
            results[pin.name] = {**counts, "sha256": identity.hash_file(file)}
        index = [
            {"name": pin.name, "format": pin.format, "num_items": pin.num_items,
             "sha256": results[pin.name]["sha256"]}
            for pin in pins
        ]  # fmt: skip
        records.write_text(folder / INDEX, records.canonical_json(index) + "\n")
    return records.Record(
        stage="benchmarks",
        treatment={
            "benchmarks": [asdict(pin) for pin in pins],
            "shuffle_seed": SHUFFLE_SEED,
            "fewest_words": FEWEST_WORDS,
        },
        result={"benchmarks": results},
        observation={},
    )


def _take(pin: Benchmark, downloads: Path) -> tuple[list[Document], dict[str, int]]:
    """The documents that are evaluated, and how many there were on the way to them."""
    with wheels.unpacked(pin, downloads) as member:
        rows = records.read_jsonl(member)
    documents, num_dropped = _READERS[pin.format](rows)
    if len(documents) < pin.num_items:
        raise UserError(
            f"`evaluate.benchmarks`: {pin.name} holds {len(documents)} usable documents, "
            f"`num_items` asks for {pin.num_items}"
        )
    random.Random(SHUFFLE_SEED).shuffle(documents)
    counts = {
        "num_rows_read": len(rows),
        "num_rows_dropped": num_dropped,
        "num_documents": len(documents),
        "num_items": pin.num_items,
    }
    return documents[: pin.num_items], counts


def read_lettered_options(rows: Sequence[Document]) -> tuple[list[Document], int]:
    """Documents {"question", "choices", "gold"}, and the number of rows dropped.

    A row is {"question", "options", "answer"}, its options lines "A. ...", "B. ..." in order. It is
    dropped unless its answer, letter and all, is exactly one of them and no two say the same.
    """
    documents = []
    for row in rows:
        options = [option.strip() for option in row["options"].splitlines()]
        letters = [match[1] if (match := _OPTION.match(option)) else "" for option in options]
        choices = [option[3:].strip() for option in options]
        if (
            letters == [chr(ord("A") + place) for place in range(len(options))]
            and all(choices)
            and len(set(choices)) == len(choices) > 1
            and row["answer"].strip() in options
        ):
            gold = options.index(row["answer"].strip())
            documents.append({"question": row["question"], "choices": choices, "gold": gold})
    return documents, len(rows) - len(documents)


def read_text_lines(rows: Sequence[Document]) -> tuple[list[Document], int]:
    """Documents {"text"} of at least `FEWEST_WORDS` words, and the number of rows left over.

    Rows are {"text"}, in the order of the text they come from, often one sentence each. Consecutive
    ones are joined by a space until they have enough words; a long one stays alone. Empty rows, and
    those after the last whole document, are left over.
    """
    documents: list[Document] = []
    waiting: list[str] = []
    num_empty = 0
    for row in rows:
        text = row["text"].strip()
        if not text:
            num_empty += 1
            continue
        waiting.append(text)
        joined = " ".join(waiting)
        if len(joined.split()) >= FEWEST_WORDS:
            documents.append({"text": joined})
            waiting = []
    return documents, num_empty + len(waiting)


_READERS: dict[str, Callable[[Sequence[Document]], tuple[list[Document], int]]] = {
    "lettered_options": read_lettered_options,
    "text_lines": read_text_lines,
}
