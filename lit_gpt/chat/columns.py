"""Two answers side by side: their lines, wrapped at the width of a column, appear as soon as both sides have one."""

from collections.abc import Callable, Sequence

from lit_gpt.chat.terminal import harmless, width

_BETWEEN = " │ "
NARROWEST = 80
"""Fewest columns of a terminal that has room for two answers."""
_TAB = 4


class Columns:
    """Answers side by side.

    Args:
        titles: what stands above each column.
        total: number of columns of the terminal.
        write: shows a text.
        emphasize: returns a title as it is shown.
    """

    def __init__(
        self, titles: Sequence[str], total: int, write: Callable[[str], None], emphasize: Callable[[str], str]
    ) -> None:
        n = len(titles)
        self.size = (total - 1 - len(_BETWEEN) * (n - 1)) // n  # the last column of a terminal would wrap
        self.write = write
        self._texts = [""] * n
        self._lines: list[list[str]] = [[] for _ in titles]
        self._ended = [False] * n
        self._show([emphasize(padded(cut(title, self.size), self.size)) for title in titles])

    def push(self, i: int, text: str) -> None:
        """Adds a part of an answer, and shows the lines that are complete on all sides."""
        self._texts[i] += harmless(text).expandtabs(_TAB)
        *whole, last = self._texts[i].split("\n")
        for paragraph in whole:
            self._lines[i] += wrapped(paragraph, self.size)
        *more, self._texts[i] = wrapped(last, self.size)
        self._lines[i] += more
        self._flush()

    def end(self, i: int) -> None:
        """Ends an answer."""
        if self._texts[i]:
            self._lines[i].append(self._texts[i])
        self._texts[i], self._ended[i] = "", True
        self._flush()

    def _flush(self) -> None:
        while any(self._lines) and all(lines or end for lines, end in zip(self._lines, self._ended, strict=True)):
            self._show([padded(lines.pop(0) if lines else "", self.size) for lines in self._lines])

    def _show(self, cells: Sequence[str]) -> None:
        self.write(_BETWEEN.join(cells).rstrip() + "\n")


def wrapped(text: str, size: int) -> list[str]:
    """Returns a paragraph as lines of at most `size` columns, broken at spaces where there are some; at least one line.

    The last line is what a longer paragraph would go on with.
    """
    lines, line, used, space = [], "", 0, -1
    for character in text:
        w = width(character)
        if used + w > size:
            if character == " ":
                lines.append(line)
                line, used, space = "", 0, -1
                continue
            rest = line[space + 1 :] if space >= 0 else ""
            lines.append(line[:space] if space >= 0 else line)
            line, used, space = rest, width(rest), -1
        if character == " ":
            space = len(line)
        line += character
        used += w
    return [*lines, line]


def padded(text: str, size: int) -> str:
    """Returns a text with spaces behind it, so that it takes `size` columns."""
    return text + " " * max(0, size - width(text))


def cut(text: str, size: int) -> str:
    """Returns as much of a text as takes at most `size` columns."""
    return text if width(text) <= size else wrapped(text.replace(" ", "\u00a0"), size)[0]
