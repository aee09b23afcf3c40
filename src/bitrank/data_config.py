"""The `data` section of `params.yaml`: rows, how a row becomes text, and what is asked of a model.

Like `config`, which it is a part of, it declares and validates and computes nothing.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bitrank.pins import (
    CsvRows,
    Faults,
    HubRows,
    Icd10Rows,
    IntentsRows,
    JsonlRows,
    NoRows,
    ParquetRows,
)

RowSource = Icd10Rows | IntentsRows | JsonlRows | CsvRows | ParquetRows | HubRows


@dataclass(frozen=True, kw_only=True)
class TemplateFormat:
    """The prompt's and the answer's template side by side, as plain text."""

    kind: Literal["template"]


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The model's own chat template around the user's and the assistant's turns."""

    kind: Literal["chat"]
    system: str | None
    """A system message before rows that have none of their own."""
    messages_field: str | None
    """Field with a list of {"role", "content"} that ends with the assistant; null: one exchange,
    the prompt's template from the user and the answer's from the assistant."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The answers are the choices of one set, compared by log-likelihood."""

    kind: Literal["classification"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The answer is free text, generated greedily up to its end token."""

    kind: Literal["generation"]
    stop: list[str]
    """Texts that end an answer too, such as a new line."""
    max_new_tokens: int
    ignore: list[str]
    """Regular expressions, in order, whose matches are removed from the generated answer and from
    the reference before they are compared."""

    def faults(self) -> Faults:
        if self.max_new_tokens < 1:
            yield "max_new_tokens", f"must be at least 1, got {self.max_new_tokens}"
        if "" in self.stop:
            yield "stop", "must not hold an empty text"
        for pattern in self.ignore:
            try:
                re.compile(pattern)
            except re.error as error:
                yield "ignore", f"has {pattern!r}, which is no regular expression: {error}"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Where the test split comes from when the rows bring a held-out set of their own."""

    rows: RowSource | NoRows
    prompt: str | None
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: str
    rows: RowSource
    test: HeldOut
    format: TemplateFormat | ChatFormat
    prompt: str | None
    """Template of the prompt over the row's fields, e.g. "Diagnosis: {text}\\nChapter:". null where
    the rows are conversations."""
    answer: str | None
    """Template of the answer; outside of a chat its leading space belongs to it."""
    task: Classification | Generation
    num_train: int
    num_validation: int
    num_test: int
    balance: bool
    """Draw as many rows of each answer as of the others, as far as they last."""
    split_seed: int
    max_sequence_tokens: int

    def faults(self) -> Faults:
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 1:
                yield name, f"must be at least 1, got {getattr(self, name)}"
        if self.max_sequence_tokens < 2:
            yield "max_sequence_tokens", "must leave room for a prompt and an answer (2 or more)"
        yield from self._template_faults("", self.prompt, self.answer)
        if not isinstance(self.test.rows, NoRows):
            yield from self._template_faults("test.", self.test.prompt, self.test.answer)

    def _template_faults(self, where: str, prompt: str | None, answer: str | None) -> Faults:
        if isinstance(self.format, ChatFormat) and self.format.messages_field is not None:
            for name, template in (("prompt", prompt), ("answer", answer)):
                if template is not None:
                    yield where + name, "must be null: `data.format.messages_field` holds the text"
            return
        broken = False
        for name, template in (("prompt", prompt), ("answer", answer)):
            for fault in _faults_of(template):
                broken = True
                yield where + name, fault
        if broken or isinstance(self.format, ChatFormat):
            return
        if not (answer or "")[:1].isspace() and not (prompt or "")[-1:].isspace():
            yield where + "answer", f"must begin with a space, or `data.{where}prompt` end with one"


def _faults_of(template: str | None) -> Iterator[str]:
    if template is None:
        yield "must be given: a template such as {text}"
        return
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        yield f"is no template ({error}): a brace that stands for itself is doubled, {{{{ or }}}}"
        return
    if not fields:
        yield "must name a field of the rows in braces, such as {text}"
    for _, name, format_spec, conversion in fields:
        if not name or format_spec or conversion:
            yield "must have nothing but the name of a field in its braces, such as {text}"
