"""What this process was told to do, as a command that does it again; records of data keep it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET = ("token", "access_token", "api_key")
"""Flags whose values no record may hold."""
_OF_ONE_RUN = ("overwrite",)
"""Flags that say nothing of what is made."""
_noted: list[str] = []


def note_command(given: Mapping[str, Any]) -> None:
    """Notes the script that runs and the flags that it was given, but for secrets.

    Args:
        given: values by flag, those of a config file included.
    """
    script = Path(sys.argv[0])
    words = [f"{script.resolve().parent.name}/{script.name}"]
    for name, value in given.items():
        if name not in (*_SECRET, *_OF_ONE_RUN):
            words += [f"--{name}", written(value)]
    _noted[:] = words


def noted_command() -> list[str] | None:
    """Returns the script of this process, by its path in the toolkit, and its flags; None outside of one."""
    return list(_noted) or None


def written(value: Any) -> str:
    """Returns the value of a flag as a word that the command line reads back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_inner(x)}" for key, x in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inner, value)) + "]"
    return str(value)


def _inner(value: Any) -> str:
    """Returns a value within a list or names with values: text in quotes, so that nothing in it is taken for YAML."""
    if isinstance(value, str | Path):
        return "'" + str(value).replace("'", "''") + "'"
    return written(value)
