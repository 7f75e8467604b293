"""The screen of a chat: answers go to stdout and everything else to stderr, and no text of a model controls it."""

import os
import re
import shutil
import sys
import unicodedata

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that control a terminal; a line break and a tab are none of them."""
_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Terminal:
    """Where a chat shows its answers and its notes.

    Attributes:
        is_shown: whether answers go to a terminal.
    """

    def __init__(self) -> None:
        self.is_shown = sys.stdout.isatty()
        can = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._note = (_DIM, _RESET) if can and sys.stderr.isatty() else ("", "")
        self._title = (_BOLD, _RESET) if can and self.is_shown else ("", "")

    @property
    def columns(self) -> int:
        """Number of columns of the terminal; 80 where there is none."""
        return shutil.get_terminal_size().columns

    def write(self, text: str) -> None:
        """Shows a part of an answer at once."""
        sys.stdout.write(harmless(text))
        sys.stdout.flush()

    def write_shaped(self, text: str) -> None:
        """Shows a text that is harmless but for what `title` adds."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def title(self, text: str) -> str:
        """Returns a heading among answers, bold where there are colors."""
        return text.join(self._title)

    def note(self, text: str) -> None:
        """Shows a line that belongs to no answer."""
        sys.stdout.flush()
        before, after = self._note
        print(before + harmless(text) + after, file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Returns a text without the characters that control a terminal; line breaks and tabs stay."""
    return _CONTROLS.sub("", text)


def width(text: str) -> int:
    """Returns how many columns a text takes on a terminal."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    """Returns how many columns a character takes: 2 if it is wide (Chinese, emoji), 0 if it joins the one before."""
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
