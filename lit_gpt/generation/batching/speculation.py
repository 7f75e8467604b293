"""Speculative decoding: tokens that a text may go on with are guessed, and one forward pass checks all of them.

What is drawn at a position depends on the text before it, the seed and the position alone (`noise`). So the checking
pass draws at every guessed position what plain decoding would draw there, and a guess is kept exactly if it is the
token drawn: greedy or sampled, a seed gives the same text with speculation and without. For one guess x, the chance of
that is p(x): nothing is lost against rejection sampling (Leviathan et al. 2023, section 2.3), whose q(x) is 1 here. A
draft model draws with the same noise, so that it guesses right more often than by chance.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from lit_gpt.generation.batching.rows import Row
from lit_gpt.generation.sampling.sampler import Sampler

_MOST_IN_A_STEP = {"cpu": 12, "cuda": 128}
"""Tokens in a forward pass from which on each more takes as long as one of its own, so that wrong guesses cost."""
_FIRST_LENGTH = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 128
"""Steps without guesses after a wrong one, and the most after many in a row."""
_OCCURRENCES = 16
"""Latest occurrences of a text's last tokens that are compared."""
_SHORTEST_MATCH, _LONGEST_MATCH = 3, 32
"""Fewest tokens that must have stood there before, and the most that are compared: two are often alike by chance."""


class _Draft(Protocol):
    """A model that guesses tokens."""

    def guess(self, rows: Sequence[Row], lengths: Sequence[int], sampler: Sampler) -> list[list[int]]:
        """Returns so many tokens that each row may go on with, or fewer."""
        ...


class Speculation:
    """Guesses what rows go on with: what followed the last occurrence of their last tokens, or what a draft says.

    Args:
        most: most tokens that are guessed for a row in a step.
        device: kind of the device that checks them.
        draft: model that guesses; None looks guesses up in the row's own text.
    """

    def __init__(self, most: int, device: str = "cpu", draft: _Draft | None = None) -> None:
        self.most, self.most_in_a_step, self.draft = most, _MOST_IN_A_STEP.get(device, 12), draft
        self.n_guessed = self.n_right = 0

    def guess(self, rows: Sequence[Row], sampler: Sampler, n_tokens: int) -> list[list[int]]:
        """Returns tokens that each row may go on with; none for rows whose guesses were wrong lately.

        Args:
            n_tokens: number of tokens that the step feeds anyway.
        """
        left = self.most_in_a_step - n_tokens
        lengths = []
        for row in rows:
            pace = self._pace(row)
            length = 0
            if pace.pause:
                pace.pause -= 1
            elif left > 0:
                length = max(0, min(pace.length, row.most_new - row.n_new - 1, left))  # the last one is drawn anyway
            left -= length
            lengths.append(length)
        if self.draft is not None:
            return self.draft.guess(rows, lengths, sampler)
        return [self._pace(row).repeats.after(row.ids, n) if n else [] for row, n in zip(rows, lengths, strict=True)]

    def learn(self, row: Row, n_guessed: int, n_right: int) -> None:
        """Makes guesses longer where they are right, and shorter and rarer where they are not."""
        if not n_guessed:
            return
        self.n_guessed += n_guessed
        self.n_right += n_right
        pace = self._pace(row)
        if n_right == 0:
            pace.length, pace.pause = max(1, pace.length // 2), pace.next_pause
            pace.next_pause = min(2 * pace.next_pause, _LONGEST_PAUSE)
        else:
            pace.length = min(self.most, 2 * pace.length) if n_right == n_guessed else max(1, n_right)
            pace.next_pause = _FIRST_PAUSE

    def _pace(self, row: Row) -> "_Pace":
        if row.pace is None:
            row.pace = _Pace(min(_FIRST_LENGTH, self.most))
        return row.pace


class _Pace:
    """How much is guessed for a row."""

    def __init__(self, length: int) -> None:
        self.length, self.pause, self.next_pause = length, 0, _FIRST_PAUSE
        self.repeats = Repeats()


class Repeats:
    """Finds where a growing text had its last tokens before."""

    def __init__(self) -> None:
        self.n = 0
        """Number of tokens that are entered."""
        self.ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        """_SHORTEST_MATCH tokens -> indices after them, latest last."""

    def after(self, ids: Sequence[int], n: int) -> list[int]:
        """Returns `n` tokens that followed the longest earlier occurrence of the end of `ids`, the latest of several;
        none if not even its last _SHORTEST_MATCH tokens occurred before.

        Args:
            ids: those of the last call, which may be longer now.
        """
        short = _SHORTEST_MATCH
        for end in range(max(short, self.n + 1), len(ids)):  # but for the last ones, which nothing follows yet
            self.ends[tuple(ids[end - short : end])].append(end)
        self.n = max(self.n, len(ids) - 1)
        found, longest = 0, 0
        for end in self.ends.get(tuple(ids[-short:]), [])[: -_OCCURRENCES - 1 : -1]:
            length = short
            while length < min(_LONGEST_MATCH, end) and ids[end - length - 1] == ids[-length - 1]:
                length += 1
            if length > longest:
                found, longest = end, length
        if not longest:
            return []
        guess = list(ids[found : found + n])
        while len(guess) < n:  # it runs into the end of the text, which repeats itself
            guess.append(guess[len(guess) - (len(ids) - found)])
        return guess
