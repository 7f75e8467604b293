"""What a parser may find in place of a text, a list or an object: each is checked, and named with its place."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lit_gpt.errors import UserError


def require_object(value: Any, where: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """`value` itself. Raises: UserError unless it is an object that has the keys."""
    if not isinstance(value, dict):
        keys = f" with {' and '.join(needed)}" if needed else ""
        raise UserError(f"{where}: expected an object{keys}, found {kind(value)}")
    for key in needed:
        if key not in value:
            raise UserError(f"{where}: no key {key!r}; found {found_keys(value)}")
    return value


def listed(value: Any, where: str, key: str) -> list[Any]:
    """`value` itself. Raises: UserError unless it is a list."""
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list, found {kind(value)}")
    return value


def optional(entry: Mapping[str, Any], where: str, key: str | None) -> str:
    """The text of a key that may be absent or null. Raises: UserError if it is something else."""
    return text(entry[key], where, key) if key is not None and entry.get(key) is not None else ""


def text(value: Any, where: str, key: str) -> str:
    """`value` itself. Raises: UserError unless it is text that UTF-8 can write."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, found {kind(value)}")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as e:
        half = f"\\u{ord(value[e.start]):04x}"
        raise UserError(f"{where}: {key!r} has half a character ({half}) at {e.start + 1}; write it whole") from e
    return value


def from_json(value: Any, where: str, key: str) -> Any:
    """What a text says in JSON, as cells of tables and LLaMA-Factory's files have lists; other values as they are.

    Raises:
        UserError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as e:
        found = f"found text that is not JSON: {value.strip()[:40]!r}"
        raise UserError(f"{where}: {key!r} must be a list or an object, perhaps as JSON, {found}") from e


def unused_keys(entry: Mapping[str, Any], used: Iterable[str | None], prefix: str = "") -> tuple[str, ...]:
    """The keys of an entry that hold something and are not among the used ones."""
    known = set(used)
    return tuple(prefix + key for key, value in entry.items() if key not in known and value not in (None, "", [], {}))


def found_keys(entry: Mapping[str, Any]) -> str:
    """The first keys of an entry, as a message names them."""
    return ", ".join(map(repr, list(entry)[:12])) or "none"


def kind(value: Any) -> str:
    """`value` as a person would name it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")
