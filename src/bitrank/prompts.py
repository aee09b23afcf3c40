"""From a row to token ids and labels: only the answer and the end token are trained.

The prompt's ids are the longest common prefix that the tokenizer gives to the prompt alone and to
prompt and answer together, so a merge across the border is seen instead of mistrained. The borders
of answers inside a prompt, in a conversation, are found in the same way.
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
NO_LIMIT = 2**20
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
            f"the row has {', '.join(map(str, row))}"
        )
    # Not `str.format`: a field may have any name, such as one with a dot in it.
    parts = string.Formatter().parse(template)
    return "".join(literal + (str(row[name]) if name else "") for literal, name, _, _ in parts)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    max_tokens: int,
    *,
    end: str = "",
    earlier: Sequence[Sequence[int]] = (),
) -> Encoded:
    """Tokenize one row. Too long a prompt loses its beginning, never the answer.

    `end` is the token that the answer ends with, "" the tokenizer's own end token; `earlier` are
    the [start, stop) of answers inside the prompt, in characters, which are trained too, unless
    their beginning is cut off.

    Raises:
        UserError: the tokenizer has no end token, or the answer alone is longer than `max_tokens`.
    """
    closing = tokenizer.eos_token_id
    if closing is None:
        raise UserError("the tokenizer has no end-of-sequence token, which an answer must end with")
    whole = list(tokenizer(prompt + answer).input_ids)
    if whole and whole[-1] == closing:
        whole.pop()  # some tokenizers add it themselves: it must stand there once
    if end:
        closing = tokenizer.convert_tokens_to_ids(end)
    border = _num_shared(tokenizer, prompt, whole)
    target = [*whole[border:], closing]
    if len(target) >= max_tokens:
        raise UserError(
            f"the answer {shorten(answer)} has {len(target)} tokens with its end token, "
            f"`data.max_sequence_tokens` is {max_tokens}: there is no room for a prompt"
        )
    labels = [IGNORED] * border + target
    cut = max(0, border + len(target) - max_tokens)
    for start, stop in earlier:
        first = _num_shared(tokenizer, prompt[:start], whole)
        last = _num_shared(tokenizer, prompt[:stop], whole)
        if first >= cut:
            labels[first:last] = whole[first:last]
    return Encoded(
        input_ids=[*whole, closing][cut:],
        labels=labels[cut:],
        truncated=cut > 0,
    )


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str]
) -> dict[str, Encoded]:
    """Each choice after `prompt`, whole."""
    return {choice: encode(tokenizer, prompt, choice, NO_LIMIT) for choice in choices}


def count_one_token(tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str]) -> int:
    """How many choices are one token after `prompt`: all of them are scored by one forward pass."""
    encoded = encode_choices(tokenizer, prompt, choices).values()
    return sum(row.num_supervised == 2 for row in encoded)  # the choice, and the end token


def _num_shared(tokenizer: PreTrainedTokenizerBase, text: str, whole: Sequence[int]) -> int:
    """How many tokens at the beginning of `whole` are those of its beginning `text`."""
    alone = tokenizer(text).input_ids
    pairs = enumerate(zip(alone, whole, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(alone), len(whole)))


def shorten(text: str) -> str:
    """A text as an error message quotes it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
