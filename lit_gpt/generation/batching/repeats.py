"""Guesses from a text itself: what followed where its last tokens stood before, and the chance that it does again."""

from collections import defaultdict
from collections.abc import Sequence

_OCCURRENCES = 16
"""Latest occurrences of a text's last tokens that are compared."""
_SHORTEST_MATCH, _LONGEST_MATCH = 2, 32
"""Fewest tokens that must have stood there before, and the most that are compared."""
_CHANCES = (0.0, 0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.95)
"""Chance that a text goes on as before after so many tokens that match, and after more than the last number, before
anything is known of the text: medians of answers of small models."""
_WEIGHT = 4
"""Guesses that such a chance counts as."""
_KEPT = 0.95
"""What an earlier guess counts for when another one is known to be right or wrong."""


class Repeats:
    """Finds where a growing text had its last tokens before, and knows how often it went on in the same way."""

    def __init__(self) -> None:
        self.n = 0
        """Number of tokens that are entered."""
        self.ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        """_SHORTEST_MATCH tokens -> indices after them, latest last."""
        self.right, self.seen = [_WEIGHT * chance for chance in _CHANCES], [float(_WEIGHT)] * len(_CHANCES)
        """Guesses that were right, and all of them, by the number of tokens that match."""
        self.found = self.length = 0
        """Where the text of the last call goes on, and how many tokens before match; 0 if it did not occur before."""
        self.next: int | None = None
        """The token there."""

    def find(self, ids: Sequence[int]) -> None:
        """Finds the longest earlier occurrence of the end of `ids`, the latest of several.

        Args:
            ids: those of the last call, which may be longer now.
        """
        short = _SHORTEST_MATCH
        for end in range(max(short, self.n + 1), len(ids)):  # but for the last ones, which nothing follows yet
            self.ends[tuple(ids[end - short : end])].append(end)
        self.n = max(self.n, len(ids) - 1)
        self.found, self.length = 0, 0
        for end in self.ends.get(tuple(ids[-short:]), [])[: -_OCCURRENCES - 1 : -1]:
            length = short
            while length < min(_LONGEST_MATCH, end) and ids[end - length - 1] == ids[-length - 1]:
                length += 1
            if length > self.length:
                self.found, self.length = end, length
        self.next = ids[self.found] if self.length else None

    def chances(self, n: int) -> list[float]:
        """Returns the chances that the next one, two, ... `n` tokens are those that followed before; none if the end
        of the text did not occur before."""
        chances, chance = [], 1.0
        for length in range(self.length, self.length + n if self.length else 0):
            chance *= self.right[_at(length)] / self.seen[_at(length)]
            chances.append(chance)
        return chances

    def after(self, ids: Sequence[int], n: int) -> list[int]:
        """Returns the `n` tokens that followed what `find` found, which repeat themselves if it is near the end."""
        guess = list(ids[self.found : self.found + n])
        while len(guess) < n:
            guess.append(guess[len(guess) - (len(ids) - self.found)])
        return guess

    def learn(self, n_guessed: int, drawn: Sequence[int]) -> None:
        """Makes chances those of the text, where the end of the text had occurred before.

        Args:
            drawn: tokens that came; all but the last were guessed.
        """
        if self.next is None:
            return
        if n_guessed == 0:  # it is known all the same whether a guess would have been right
            self._count(self.length, drawn[0] == self.next)
        for i in range(min(n_guessed, len(drawn))):
            self._count(self.length + i, i < len(drawn) - 1)

    def _count(self, length: int, is_right: bool) -> None:
        at = _at(length)
        self.right[at] = _KEPT * self.right[at] + is_right
        self.seen[at] = _KEPT * self.seen[at] + 1


def _at(length: int) -> int:
    """Returns the place of a number of matching tokens in `_CHANCES`."""
    return min(length, len(_CHANCES) - 1)
