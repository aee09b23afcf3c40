"""Voice commands for a home and what they ask for: a task with free-text answers.

The sentence templates are Home Assistant's (CC BY 4.0), in English. A template's lists are filled
with its own values, or from a small household of ours where the template leaves the names of rooms,
devices and things open. The answer is one line: the intent, then its slots in alphabetical order,
such as "HassLightSet area=kitchen, brightness=40, domain=light".

A row's group is its template, so that no two splits share one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitrank import wheels
from bitrank.pins import IntentsRows
from bitrank.rows import Loaded, RawRow
from bitrank.rows.sentences import Grammar, Value, draw_sentence

TRIES = 10
"""Draws for each sentence that is wanted: a template with few sentences gives what it has."""

OPEN: Mapping[str, Sequence[str]] = {
    "area": ("kitchen", "living room", "bedroom", "bathroom", "hallway", "office", "garage",
             "dining room", "guest room", "nursery", "attic", "laundry room", "basement", "patio"),
    "floor": ("ground", "first", "second", "top", "lower", "upper"),
    "message": ("dinner is ready", "the car is here", "come downstairs", "bedtime in ten minutes",
                "somebody is at the door", "the movie starts now"),
    "search_query": ("bohemian rhapsody", "abbey road", "jazz classics", "the dark knight",
                     "morning news", "miles davis", "lullabies", "planet earth"),
    "zone": ("work", "school", "the gym", "the office", "the airport"),
    "timer_name": ("pizza", "laundry", "egg", "tea", "homework", "bread", "workout", "pasta"),
    "timer_command": ("turn off the lights", "open the garage door", "lock the front door",
                      "pause the music", "close the blinds", "start the vacuum"),
    "shopping_list_item": ("milk", "eggs", "olive oil", "bananas", "toilet paper", "coffee",
                           "green apples", "bread"),
    "todo_list_item": ("call the dentist", "water the plants", "pay the rent", "book a table",
                       "wash the car", "renew the passport"),
}  # fmt: skip
"""Values of the lists that stand for anything."""

NAMES: Mapping[str, Sequence[str]] = {
    "light": ("desk lamp", "ceiling light", "bedside lamp", "reading light", "night light",
              "porch light", "floor lamp", "string lights"),
    "switch": ("coffee machine", "heater plug", "christmas tree", "water pump"),
    "fan": ("ceiling fan", "tower fan", "exhaust fan", "desk fan"),
    "cover": ("left curtain", "roller blind", "garage door", "balcony shutter", "skylight"),
    "lock": ("front door", "back door", "garden gate", "side entrance"),
    "media_player": ("tv", "soundbar", "kitchen speaker", "record player", "home cinema"),
    "climate": ("thermostat", "air conditioner", "heat pump", "radiator"),
    "vacuum": ("robot vacuum", "dusty", "floor cleaner"),
    "valve": ("sprinkler valve", "main water valve", "radiator valve"),
    "person": ("alice", "bob", "carol", "dave"),
    "lawn_mower": ("lawn mower", "robot mower"),
    "scene": ("movie night", "good morning", "dinner party", "relax"),
    "script": ("bedtime routine", "leave home", "party mode"),
    "todo": ("chores", "errands", "packing list"),
    "weather": ("home forecast", "city forecast"),
    "binary_sensor": ("window sensor", "motion sensor", "smoke detector", "phone charger"),
}  # fmt: skip
"""Names of devices by what they are."""


def load(rows: IntentsRows, downloads: Path) -> Loaded:
    """Raises UserError: the wheel cannot be had, or is not the one that is pinned."""
    with wheels.unpacked(rows, downloads) as file:
        language = json.loads(file.read_text(encoding="utf-8"))
    drawn = [
        row
        for intent, block in _blocks(language)
        for row in _draw_rows(intent, block, language, rows)
    ]
    return Loaded(drawn, {})


def _blocks(language: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for intent, described in language["intents"].items():
        for block in described["data"]:
            yield intent, block


def _draw_rows(
    intent: str, block: Mapping[str, Any], language: Mapping[str, Any], pin: IntentsRows
) -> Iterator[RawRow]:
    """The distinct sentences of a block's templates.

    Each template has a generator of its own: a template that is added changes no other's sentences.
    """
    names = _names((block.get("requires_context") or {}).get("domain"))
    values = _Lists(language["lists"], names)
    grammar = Grammar(language["expansion_rules"], values)
    for template in block["sentences"]:
        draw = random.Random(f"{pin.draw_seed} {intent} {template}")
        seen: set[str] = set()
        for _ in range(TRIES * pin.sentences_per_template):
            if len(seen) == pin.sentences_per_template:
                break
            text, slots = draw_sentence(template, grammar, draw)
            if text not in seen:
                seen.add(text)
                answer = write_answer(intent, {**block.get("slots", {}), **slots})
                fields = {"text": text, "intent": intent, "answer": answer}
                yield RawRow(fields, template, f"{intent}: {template}")


def write_answer(intent: str, slots: Mapping[str, object]) -> str:
    """The one text of an intent with its slots."""
    told = ", ".join(f"{name}={slots[name]}" for name in sorted(slots))
    return f"{intent} {told}" if told else intent


def _names(domains: str | Sequence[str] | None) -> list[str]:
    """The devices of these kinds; of all kinds where none is asked for, or none is known."""
    wanted = [domains] if isinstance(domains, str) else domains or []
    found = [name for domain in wanted for name in NAMES.get(domain, ())]
    return found or [name for of_kind in NAMES.values() for name in of_kind]


class _Lists:
    """Draws values: of the lists in the language's file, and of those that it leaves open."""

    def __init__(self, lists: Mapping[str, Any], names: Sequence[str]) -> None:
        self._lists = lists
        self._open = {**OPEN, "name": names}

    def __call__(self, name: str, draw: random.Random) -> Value:
        if name in self._open:
            value = draw.choice(self._open[name])
            return value, value
        described = self._lists[name]
        if "values" in described:
            chosen = draw.choice(described["values"])
            return chosen["in"], chosen["out"]
        bounds = described["range"]
        number = draw.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1))
        return str(number), number * bounds.get("multiplier", 1)
