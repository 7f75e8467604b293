"""Checks the values that a parser of entries reads: text, list or object; errors name the value and its location."""

import json
from collections.abc import Container, Mapping
from typing import Any

from lit_gpt.errors import UserError


def require_object(value: Any, where: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """Returns `value` if it is an object that has the keys; raises UserError if not."""
    if not isinstance(value, dict):
        keys = f" with {' and '.join(needed)}" if needed else ""
        raise UserError(f"{where}: expected an object{keys}, found {kind(value)}")
    for key in needed:
        if key not in value:
            raise UserError(f"{where}: no key {key!r}; found {found_keys(value)}")
    return value


def listed(value: Any, where: str, key: str) -> list[Any]:
    """Returns `value` if it is a list; raises UserError if not."""
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list, found {kind(value)}")
    return value


def optional(entry: Mapping[str, Any], where: str, key: str | None) -> str:
    """Returns the text of a key, empty if it is absent or null; raises UserError if it is anything else."""
    return text(entry[key], where, key) if key is not None and entry.get(key) is not None else ""


def text(value: Any, where: str, key: str) -> str:
    """Returns `value` if it is text that UTF-8 can encode; raises UserError if not."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, found {kind(value)}")
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError as e:
        half = f"\\u{ord(value[e.start]):04x}"
        raise UserError(f"{where}: {key!r} has half a character ({half}) at {e.start + 1}; write it whole") from e
    return value


def from_json(value: Any, where: str, key: str) -> Any:
    """Parses a value that is a JSON text, as tables and LLaMA-Factory's files hold lists; returns others as they are.

    Raises:
        UserError: the text is not valid JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as e:
        found = f"found text that is not JSON: {value.strip()[:40]!r}"
        raise UserError(f"{where}: {key!r} must be a list or an object, perhaps as JSON, {found}") from e


def unused_keys(entry: Mapping[str, Any], used: Container[str | None], prefix: str = "") -> tuple[str, ...]:
    """Returns the keys of an entry that hold a value and are not among the used ones."""
    others = [key for key in entry if key not in used]  # most entries have none
    return tuple(prefix + key for key in others if entry[key] not in (None, "", [], {}))


def found_keys(entry: Mapping[str, Any]) -> str:
    """Returns the first keys of an entry, as a message lists them."""
    return ", ".join(map(repr, list(entry)[:12])) or "none"


def kind(value: Any) -> str:
    """Returns what kind of value it is, as a message names it: "a list", "the number 3" ..."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")
