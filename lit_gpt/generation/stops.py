"""Stop strings in a text that comes in pieces: where it ends, and what can be shown before that is known."""

from collections.abc import Sequence


class StopStrings:
    """A text that ends where a stop string is complete, however the text is cut into pieces.

    The stop string that is complete first ends the text; of several that are complete at one character, the longest.

    Args:
        keeps: whether the text ends with the stop string rather than before it.
    """

    def __init__(self, stops: Sequence[str], keeps: bool = False) -> None:
        self.stops, self.keeps = [s for s in stops if s], keeps
        self.held = ""
        """The end of the text that is not shown yet, since a stop string may begin with it."""

    def push(self, text: str, may_end: bool = True) -> tuple[str, str | None]:
        """Returns the text that can be shown now, and the stop string that ended it, or None.

        Args:
            may_end: whether a stop string that becomes complete in `text` counts.
        """
        text = self.held + text
        self.held = ""
        if may_end and (found := self._first(text)):
            begin, stop = found
            return text[: begin + len(stop) * self.keeps], stop
        n = max((_overlap(text, s) for s in self.stops), default=0)
        self.held = text[len(text) - n :]
        return text[: len(text) - n], None

    def flush(self) -> str:
        """Returns what is held back, once no more text will come."""
        held, self.held = self.held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        """Returns (where it begins, stop string) of the first that is complete in `text`, or None."""
        found = [(begin + len(s), begin, s) for s in self.stops if (begin := text.find(s)) >= 0]
        return min(found)[1:] if found else None


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that `stop` begins with, all of `stop` excepted."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
