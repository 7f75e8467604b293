"""Reads YAML that may be anything: of any size and depth, and with aliases that stand for much more than is written."""

import math
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.errors import UserError

_MAX_CHARACTERS = 2**16
"""Largest size of a YAML text; PyYAML takes up to a second for it."""
_MAX_VALUES = 100_000
"""Largest number of values, each alias counted as all that it stands for."""
_MAX_DEPTH = 50


class TooLargeError(yaml.YAMLError):
    """An error for a text that is longer, deeper, or stands for more values than is read here."""


def read_yaml(path: Path, remedy: str = "get it again") -> dict[str, Any]:
    """Returns the names with values in a YAML file; the values are those that JSON has.

    Raises:
        UserError: the file holds something else, or is too large.
    """
    return _names_in(path, str(path), remedy)


def parse_yaml(text: str, where: str, remedy: str = "get it again") -> dict[str, Any]:
    """Returns the names with values in a YAML text; see `read_yaml`.

    Args:
        where: place of the text, for messages.
    """
    return _names_in(text, where, remedy)


def _names_in(source: Path | str, where: str, remedy: str) -> dict[str, Any]:
    """Returns the names with values in a YAML file or text."""
    try:
        node = compose_yaml(source, yaml.SafeLoader)
        value = None if node is None else yaml.SafeLoader("").construct_document(node)
        _require_plain(value)
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as e:
        reason = getattr(e, "problem", None) or str(e) or type(e).__name__
        raise UserError(f"{where} cannot be read as YAML ({reason}); {remedy}") from e
    if not isinstance(value, dict):
        raise UserError(f"{where} has no names with values; {remedy}")
    return value


def compose_yaml(source: Path | str, loader: Any) -> Any:
    """Returns the node of the one document in a file or a text, None if that is empty.

    Args:
        loader: class of PyYAML's loaders, which can then construct values of the node.

    Raises:
        yaml.YAMLError: it is not YAML, or is too large.
        UnicodeError: the file is not in UTF-8, or a text has half a character (a lone surrogate).
    """
    text = _beginning(source) if isinstance(source, Path) else source
    if len(text) > _MAX_CHARACTERS:
        raise TooLargeError(f"it has more than {_MAX_CHARACTERS:,} characters")
    try:
        node = _stopping_when_deep(loader(text)).get_single_node()
        if node is not None:
            _measured(node, {}, 1)
    except RecursionError:
        raise TooLargeError("it is nested too deeply") from None
    except UnicodeError:
        raise
    except (ValueError, IndexError, OverflowError) as e:  # from PyYAML, where an escaped character has no such number
        raise yaml.YAMLError(str(e)) from e
    return node


def _stopping_when_deep(loader: Any) -> Any:
    """Returns a loader that raises TooLargeError at the first node that is too deep.

    PyYAML's time for each token grows with the number of brackets that are open, so that it would take long to the end.
    """
    compose, level = loader.compose_node, 0

    def compose_node(parent: Any, index: Any) -> Any:
        nonlocal level
        level += 1
        if level > _MAX_DEPTH:
            raise TooLargeError("it is nested too deeply")
        node = compose(parent, index)
        level -= 1
        return node

    loader.compose_node = compose_node
    return loader


def _beginning(path: Path) -> str:
    """Returns the text of a file, at most a character more than is read here."""
    with open(path, encoding="utf-8-sig") as file:
        return file.read(_MAX_CHARACTERS + 1)


def _measured(node: Any, known: dict[int, tuple[int, int]], level: int) -> tuple[int, int]:
    """Returns the number of values and the depth of a node, with its aliases written out.

    Args:
        known: what was measured, by the id of its node; a node with several aliases is measured once.
        level: number of nodes around this one; an alias inside of what it stands for never ends.

    Raises:
        TooLargeError: they are too many, or too deep.
        UnicodeEncodeError: a text has half a character (a lone surrogate).
    """
    if level > _MAX_DEPTH:
        raise TooLargeError("it is nested too deeply")
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, yaml.ScalarNode):
        node.value.encode()
        return 1, 1
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    found = [_measured(part, known, level + 1) for part in inner]
    size, depth = 1 + sum(n for n, _ in found), 1 + max((d for _, d in found), default=0)
    if size > _MAX_VALUES or depth > _MAX_DEPTH:
        raise TooLargeError("it has too many values, or aliases that stand for them")
    known[id(node)] = size, depth
    return size, depth


def _require_plain(value: Any) -> None:
    """Checks that JSON could have a value.


    Raises:
        ValueError: JSON could not.
    """
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the name {strange[0]!r} is no text")
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _require_plain(part)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value!r} is no value here")
