"""Sentence templates as Home Assistant writes them, and sentences drawn from them.

    [x]       x or nothing           (a|b)     one of them            (a;b)   both, in any order
    <rule>    a template by name     {list}    a value of a list; {list:slot} puts it into a slot

A template stands for millions of sentences, so that they are drawn and not listed. A draw takes its
chances from the generator that it is given and from nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_TOKEN = re.compile(r"[\[\](){}<>|;]|[^\[\](){}<>|;]+")
_CLOSING = {"[": "]", "(": ")"}

Value = tuple[str, object]
"""How a value of a list is said, itself a template, and what is put into the slot."""
Values = Callable[[str, random.Random], Value]
"""Draws a value of the list of that name."""


@dataclass(frozen=True)
class Grammar:
    """What the names in templates stand for."""

    rules: Mapping[str, str]
    values: Values


def draw_sentence(
    template: str, grammar: Grammar, draw: random.Random
) -> tuple[str, dict[str, object]]:
    """A sentence with single spaces, and its slots.

    Raises:
        ValueError: the template is not well-formed.
        KeyError: it names a rule or list that is not there.
    """
    reader = _Reader(template, grammar, draw)
    said = reader.read("")
    return " ".join(said.split()), reader.slots


class _Reader:
    """Reads a template from left to right and draws as it goes.

    All branches are read, so that the slots of those that are not taken are put aside.
    """

    def __init__(self, template: str, grammar: Grammar, draw: random.Random) -> None:
        self._tokens: list[str] = _TOKEN.findall(template)
        self._grammar = grammar
        self._draw = draw
        self.slots: dict[str, object] = {}

    def read(self, closing: str) -> str:
        """What is said up to `closing`: one of the branches, or all of them in any order."""
        outer = self.slots
        branches: list[tuple[str, dict[str, object]]] = []
        separator = ""
        while True:
            self.slots = {}
            said, end = self._read_branch()
            branches.append((said, self.slots))
            if end == closing:
                break
            if end not in ("|", ";") or separator not in ("", end):
                raise ValueError(f"expected {closing or 'the end'}, got {end or 'the end'}")
            separator = end
        if separator == ";":
            self._draw.shuffle(branches)
            taken = branches
        else:
            taken = [self._draw.choice(branches)]
        self.slots = outer
        for _, slots in taken:
            self.slots.update(slots)
        return " ".join(said for said, _ in taken)

    def _read_branch(self) -> tuple[str, str]:
        """What a branch says, and the token that ended it ("" at the end of the template)."""
        said = ""
        while self._tokens:
            token = self._tokens.pop(0)
            if token in ("|", ";", "]", ")"):
                return said, token
            said += self._say(token)
        return said, ""

    def _say(self, token: str) -> str:
        if token == "<":
            return self._expand(self._grammar.rules[self._name(">")])
        if token == "{":
            name, _, slot = self._name("}").partition(":")
            spoken, value = self._grammar.values(name, self._draw)
            self.slots[slot or name] = value
            return self._expand(spoken)
        if token not in _CLOSING:
            return token
        before = dict(self.slots)
        said = self.read(_CLOSING[token])
        if token == "[" and self._draw.random() < 0.5:
            self.slots = before
            return ""
        return said

    def _name(self, closing: str) -> str:
        name = str(self._tokens.pop(0))
        if not self._tokens or self._tokens.pop(0) != closing:
            raise ValueError(f"{name!r} is not closed by {closing}")
        return name

    def _expand(self, template: str) -> str:
        inner = _Reader(template, self._grammar, self._draw)
        said = inner.read("")
        self.slots.update(inner.slots)
        return said
