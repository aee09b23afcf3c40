"""From a row to token ids and labels: only the answer and the end token are trained.

The prompt's ids are the longest common prefix that the tokenizer gives to the prompt alone and to
prompt and answer together, so a merge across the border is seen instead of mistrained.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bitrank.errors import UserError

IGNORED = -100
"""The label of a position that is not trained (the field's convention)."""
_NO_LIMIT = 2**20
"""Tokens: what is only counted is not cut."""


@dataclass(frozen=True)
class Encoded:
    """One row ready for training. `labels[i]` is `input_ids[i]` or IGNORED; equal lengths."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool

    @property
    def num_supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def fields_of(template: str) -> list[str]:
    """The field names in a template's braces, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """Raises UserError: the row lacks a field of the template; `where` names file and line."""
    missing = [name for name in fields_of(template) if row.get(name) is None]
    if missing:
        raise UserError(
            f"{where}: no field {', '.join(missing)}, which the template {template!r} needs; "
            f"the row has {', '.join(sorted(row))}"
        )
    return template.format_map(row)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, max_tokens: int
) -> Encoded:
    """Tokenize one row. Too long a prompt loses its beginning, never the answer.

    Raises:
        UserError: the tokenizer has no end token, or the answer alone is longer than `max_tokens`.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token, which an answer must end with")
    whole = list(tokenizer(prompt + answer).input_ids)
    if whole and whole[-1] == end:
        whole.pop()  # some tokenizers add it themselves: it must stand there once
    alone = list(tokenizer(prompt).input_ids)
    shared = 0
    while shared < min(len(alone), len(whole)) and alone[shared] == whole[shared]:
        shared += 1
    target = [*whole[shared:], end]
    if len(target) >= max_tokens:
        raise UserError(
            f"the answer {answer!r} has {len(target)} tokens with its end token, "
            f"`data.max_sequence_tokens` is {max_tokens}: there is no room for a prompt"
        )
    context = whole[:shared]
    kept = context[max(0, len(context) - (max_tokens - len(target))) :]
    return Encoded(
        input_ids=kept + target,
        labels=[IGNORED] * len(kept) + target,
        truncated=len(kept) < len(context),
    )


def count_one_token(tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str]) -> int:
    """How many choices are one token after `prompt`: all of them are scored by one forward pass."""
    trained = (encode(tokenizer, prompt, choice, _NO_LIMIT) for choice in choices)
    return sum(row.num_supervised == 2 for row in trained)  # the choice, and the end token
