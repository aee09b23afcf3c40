"""Plain YAML mappings to typed, frozen dataclasses, with every fault collected.

OmegaConf's structured configs stop at the first fault and know neither `Literal` nor a union of
dataclasses, so the door is ours: `build` walks the type hints, and a dataclass may add rules of
its own in a method `faults()` that yields (field name, message).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def build(cls: type[T], value: object, key: str, faults: list[str]) -> T | None:
    """Return `value` as an instance of the dataclass `cls`, or None with the reasons in `faults`.

    `key` is the dotted path of `value` as the user writes it on the command line.
    """
    if not isinstance(value, Mapping):
        faults.append(f"`{key}` must be a section with keys, got {value!r}")
        return None
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    before = len(faults)
    for name in value:
        if name not in names:
            faults.append(f"`{key}.{name}` is not a known key; known are: {', '.join(names)}")
    built: dict[str, Any] = {}
    for name in names:
        if name in value:
            built[name] = _convert(hints[name], value[name], f"{key}.{name}", faults)
        else:
            faults.append(f"`{key}.{name}` is missing")
    if len(faults) > before:
        return None
    made = cls(**built)
    rules = getattr(made, "faults", None)
    if rules is not None:
        faults.extend(f"`{key}.{name}` {message}" for name, message in rules())
    return made


def _convert(hint: Any, value: object, key: str, faults: list[str]) -> object:
    """One value by its type hint; a fault is recorded and None stands in for the value."""
    if value == "???":  # OmegaConf's mark of a value that has no default
        faults.append(f"`{key}` has no default: add {key.lstrip('.')}=... to the command")
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, key, faults)
    if origin is typing.Literal:
        if value not in arguments:
            allowed = ", ".join(str(argument) for argument in arguments)
            faults.append(f"`{key}` must be one of {allowed}, got {value!r}")
        return value
    if origin is list:
        if not isinstance(value, list):
            faults.append(f"`{key}` must be a list, got {value!r}")
            return None
        return [_convert(arguments[0], v, f"{key}[{i}]", faults) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, key, faults)
    return _convert_scalar(hint, value, key, faults)


def _convert_union(
    arguments: tuple[Any, ...], value: object, key: str, faults: list[str]
) -> object:
    """`X | None`, a list or a plain value, or dataclasses told apart by a field such as `kind`."""
    members = [argument for argument in arguments if argument is not type(None)]
    if value is None and type(None) in arguments:
        return None
    if len(members) == 1:
        return _convert(members[0], value, key, faults)
    if not all(dataclasses.is_dataclass(member) for member in members):
        if not isinstance(value, list | str):
            faults.append(f"`{key}` must be a list or text, got {value!r}")
            return None
        fits = [m for m in members if (typing.get_origin(m) is list) == isinstance(value, list)]
        return _convert(fits[0], value, key, faults)
    hints = [typing.get_type_hints(member) for member in members]
    tag = next(name for name in hints[0] if all(_is_literal(hint.get(name)) for hint in hints))
    kinds = {
        name: member
        for hint, member in zip(hints, members, strict=True)
        for name in typing.get_args(hint[tag])
    }
    kind = value.get(tag) if isinstance(value, Mapping) else None
    if kind not in kinds:
        faults.append(f"`{key}.{tag}` must be one of {', '.join(kinds)}, got {kind!r}")
        return None
    return build(kinds[kind], value, key, faults)


def _is_literal(hint: object) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _convert_scalar(hint: Any, value: object, key: str, faults: list[str]) -> object:
    # bool is an int in Python, but `rank: true` is a mistake, and 3 is a fine float.
    wanted = (int, float) if hint is float else (hint,)
    if isinstance(value, wanted) and (hint is bool or not isinstance(value, bool)):
        return float(value) if isinstance(value, int) and hint is float else value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    faults.append(f"`{key}` must be {names[hint]}, got {value!r}")
    return None
