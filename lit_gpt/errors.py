"""The exceptions that stand for a mistake the user can fix, and how their messages quote a value."""

import re
from typing import Any

_LONGEST = 1_000
"""Number of characters of a message; what is longer loses its middle, since the way out stands at the end."""
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that begin another line or command a terminal."""


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, with its value and location, and how to fix it.

    `lit_gpt.cli.run` prints it without a traceback, as it does the operating system's errors about files and disks;
    LIT_GPT_TRACEBACK=1 shows where it came from. Every other exception is a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class CommandLineError(UserError):
    """Wrong input on the command line itself: an unknown flag, or a value of another type."""


class DiskError(UserError):
    """A file that could not be written, since its disk is full or fails; what was there before stays."""


def one_line(message: str, longest: int = _LONGEST) -> str:
    """Returns a message as one line, without a part of its middle if it has more than `longest` characters."""
    text, end = _UNSHOWN.sub(" ", message), longest * 3 // 10
    return text if len(text) <= longest else f"{text[: longest - end - 5]} ... {text[-end:]}"


def shown(value: Any, longest: int = 80) -> str:
    """Returns a value as an error message quotes it, which may come from a file and be anything.

    Args:
        longest: number of characters to show of it.
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Python does not write integers of more than 4,300 digits
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
