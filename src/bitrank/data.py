"""The rows of a split: in its file, and as token ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bitrank import prompts, records
from bitrank.errors import UserError, make_each


@dataclass(frozen=True)
class Row:
    """A row as the model sees it: its text is `prompt + answer`, then the end token."""

    prompt: str
    answer: str
    group: str
    end: str = ""
    """The end token, where it is not the tokenizer's own."""
    earlier: Sequence[Sequence[int]] = ()
    """[start, stop) of the answers in a conversation's prompt, which are trained too."""
    where: str = field(default="", compare=False)
    """File and line that it was read from, for messages; not written."""


def count_answers(rows: Sequence[Row]) -> dict[str, int]:
    return dict(sorted(Counter(row.answer for row in rows).items()))


def write_split(path: Path, rows: Sequence[Row]) -> None:
    """One row a line; where it was read from is left out, and what is empty of a conversation."""
    records.write_jsonl(
        path,
        (
            {name: value for name, value in vars(row).items()
             if name != "where" and (value or name not in ("end", "earlier"))}
            for row in rows
        ),
    )  # fmt: skip


def read_split(path: Path) -> list[Row]:
    """The rows of a split; each was read from its line of the split's file."""
    return [
        Row(**{**row, "earlier": tuple(map(tuple, row.get("earlier", ()))),
               "where": f"{path}:{number}"})
        for number, row in enumerate(records.read_jsonl(path), start=1)
    ]  # fmt: skip


def read_choices(prepared: Path) -> list[str]:
    choices: list[str] = json.loads((prepared / "choices.json").read_text(encoding="utf-8"))
    return choices


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> prompts.Encoded:
    """Raises UserError: the answer does not fit, with the row's place."""
    try:
        return prompts.encode(
            tokenizer, row.prompt, row.answer, max_tokens, end=row.end, earlier=row.earlier
        )
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from None


def encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[prompts.Encoded]:
    """The token ids and labels of rows, in order.

    Raises:
        UserError: answers that do not fit, each with its place.
    """
    return make_each(lambda row: encode_row(row, tokenizer, max_tokens), rows)


def encode_split(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[prompts.Encoded]:
    """`encode_rows` of a split's file."""
    return encode_rows(read_split(path), tokenizer, max_tokens)
