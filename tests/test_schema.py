"""The door of the configuration: every fault at once, each under the key that the user wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from bitrank import schema


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"]
    side: float


@dataclass(frozen=True, kw_only=True)
class Circle:
    kind: Literal["circle"]
    radius: float


@dataclass(frozen=True, kw_only=True)
class Drawing:
    title: str
    copies: int
    visible: bool
    scale: float | None
    tags: list[str]
    shape: Square | Circle

    def faults(self):
        if self.copies < 1:
            yield "copies", "must be at least 1"


GOOD = {
    "title": "a",
    "copies": 2,
    "visible": True,
    "scale": 3,
    "tags": ["x"],
    "shape": {"kind": "circle", "radius": 1.5},
}


def test_good_values_become_typed_objects() -> None:
    faults: list[str] = []
    drawing = schema.build(Drawing, GOOD, "drawing", faults)
    assert faults == []
    assert drawing is not None
    assert drawing.shape == Circle(kind="circle", radius=1.5)
    assert isinstance(drawing.scale, float), "a whole number is a fine float"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"copies": True}, "`drawing.copies` must be a whole number, got True"),
        ({"copies": "2"}, "`drawing.copies` must be a whole number, got '2'"),
        ({"copies": 0}, "`drawing.copies` must be at least 1"),
        ({"visible": 1}, "`drawing.visible` must be true or false, got 1"),
        ({"tags": "x"}, "`drawing.tags` must be a list, got 'x'"),
        ({"tags": ["x", 1]}, "`drawing.tags[1]` must be text, got 1"),
        ({"shape": {"kind": "blob"}}, "`drawing.shape.kind` must be one of square, circle"),
        ({"shape": {"kind": "circle"}}, "`drawing.shape.radius` is missing"),
        ({"title": "???"}, "`drawing.title` has no default: add drawing.title=..."),
        ({"colour": "red"}, "`drawing.colour` is not a known key; known are: title,"),
    ],
)
def test_a_fault_names_key_value_and_what_is_wanted(change: dict, expected: str) -> None:
    faults: list[str] = []
    schema.build(Drawing, {**GOOD, **change}, "drawing", faults)
    assert len(faults) == 1
    assert faults[0].startswith(expected)


def test_all_faults_are_reported_at_once() -> None:
    faults: list[str] = []
    schema.build(Drawing, {**GOOD, "copies": "x", "visible": 1, "scale": "y"}, "drawing", faults)
    assert len(faults) == 3
