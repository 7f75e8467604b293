"""Reads JSON that may be anything: of any size and depth, in any encoding, with numbers that are none."""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from lit_gpt.errors import UserError, shown

MAX_BYTES = 12 * 2**20
"""Largest size of a JSON file. The largest real ones, tables of tensors and vocabularies, have half of it, and Python
takes up to 30 times as much memory."""
_MAX_DEPTH = 100
"""Largest number of lists and objects that stand in each other; later steps need several Python calls for each."""
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, remedy: str = "get it again") -> Any:
    """Returns the value that a JSON file states.

    Raises:
        UserError: the file is too large, or not JSON.
    """
    return parse_json(_read_bytes(path, remedy), str(path), remedy)


def read_object(path: Path, remedy: str = "get it again", finite: bool = True) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Args:
        remedy: what the user can do, which completes the message.
        finite: whether to refuse NaN and infinite numbers, which JSON does not have; our own records may hold them.

    Raises:
        UserError: the file is too large, or holds anything but a JSON object.
    """
    return parse_object(_read_bytes(path, remedy), str(path), remedy, finite)


def parse_object(text: bytes | str, where: str, remedy: str = "get it again", finite: bool = True) -> dict[str, Any]:
    """Returns the JSON object that a text is.

    Args:
        where: file or place of the text, for messages.
        remedy, finite: see `read_object`.

    Raises:
        UserError: it is none.
    """
    value = parse_json(text, where, remedy, finite)
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no JSON object but {_NAMES[type(value)]}, {shown(value)}; {remedy}")
    return value


def parse_json(text: bytes | str, where: str, remedy: str = "get it again", finite: bool = True) -> Any:
    """Returns the value that a JSON text states; a key that stands twice has its last value, as everywhere.

    Args:
        where: file or place of the text, for messages.
        remedy, finite: see `read_object`.

    Raises:
        UserError: it is not JSON, is nested too deeply, has half a character (a lone surrogate), or a number that is
            NaN or infinite.
    """
    constant = _refuse if finite else float
    number = _finite if finite else float
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text.removeprefix("\ufeff"), parse_constant=constant, parse_float=number)
        _require_shallow(value)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{where} is nested too deeply for JSON that is read here; {remedy}") from None
    except UnicodeEncodeError as e:
        half = ascii(e.object[e.start])
        raise UserError(f"{where} is not valid JSON (it has {half}, half of a character); {remedy}") from None
    except ValueError as e:
        raise UserError(f"{where} is not valid JSON ({e}); {remedy}") from e
    return value


def _read_bytes(path: Path, remedy: str) -> bytes:
    """Returns the content of a file; raises UserError if it is too large for JSON."""
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)  # as much as comes, whatever its size is said to be
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes, the most for a file like this; {remedy}")
    return content


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shown(digits)} is too large for a number")
    return value


def _require_shallow(value: Any) -> None:
    """Checks the depth of a value; raises RecursionError if it exceeds _MAX_DEPTH."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    raise RecursionError


_NAMES = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
_NAMES |= {type(None): "null"}
"""Name of each type of JSON's values, other than objects."""
