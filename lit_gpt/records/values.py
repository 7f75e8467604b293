"""Checks that values which were read from a file are of the types that annotations name."""

import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from lit_gpt.errors import UserError, shown

_LARGEST = 2**63 - 1
"""Largest whole number; numpy and torch have no larger ones."""


def require_types(where: str, record: Mapping[str, Any], kinds: Mapping[str, Any], remedy: str = "") -> None:
    """Checks that the values of a record are of their types.

    Args:
        where: the file, for the message.
        kinds: annotation of each value by its name; names that are absent here or in the record are not checked.
        remedy: what the user can do, which completes the message.

    Raises:
        UserError: one is not; the message names it.
    """
    for name, value in record.items():
        if name in kinds and (problem := misfit(kinds[name], value)):
            raise UserError(f"{where}: {name}={shown(value)} {problem}{remedy and f'; {remedy}'}")


def misfit(kind: Any, value: Any) -> str | None:
    """Returns why a value does not fit an annotation, such as `is not a whole number`; None if it fits."""
    if fits(kind, value):
        return None
    if get_origin(kind) is Literal:
        return f"is none of {', '.join(map(str, get_args(kind)))}"
    return f"is not {_wanted(kind)}"


def is_file_name(value: Any) -> bool:
    """Returns whether a value is the name of a file, without a folder, that any system takes."""
    return isinstance(value, str) and 0 < len(value) < 200 and Path(value).name == value and value.isprintable()


def fits(kind: Any, value: Any) -> bool:
    """Returns whether a value of a JSON file is what an annotation names.

    A whole number is no bool, a number may be written as a whole one and is finite, and a path is a string.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(k, value) for k in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(inner[0], x) for x in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(inner[1], x) for x in value.values())
    if kind in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= _LARGEST
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, str if kind is Path else kind)


def _wanted(kind: Any) -> str:
    """Returns what a value of an annotation is called in messages."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_wanted, inner)))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (list, tuple):
        return f"a list, each entry {_wanted(inner[0])}"
    if origin is dict:
        return "an object" if inner[1] is Any else f"an object, each value {_wanted(inner[1])}"
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
_WORDS |= {Path: "a path", dict: "an object", list: "a list", type(None): "null", Any: "anything"}
"""Name of each type in messages."""
