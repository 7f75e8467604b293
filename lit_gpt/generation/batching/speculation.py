"""Speculative decoding: tokens that a text may go on with are guessed, and one forward pass checks all of them.

What is drawn at a position depends on the text before it, the seed and the position alone (`noise`). So the checking
pass draws at every guessed position what plain decoding would draw there, and a guess is kept exactly if it is the
token drawn: greedy or sampled, a seed gives the same text with speculation and without. For one guess x, the chance of
that is p(x): nothing is lost against rejection sampling (Leviathan et al. 2023, section 2.3), whose q(x) is 1 here. A
draft model draws with the same noise, so that it guesses right more often than by chance.
"""

from collections.abc import Sequence
from typing import Protocol

from lit_gpt.generation.batching.repeats import Repeats
from lit_gpt.generation.batching.rows import Row
from lit_gpt.generation.sampling.sampler import Sampler

_COST = {"cpu": 0.12, "cuda": 0.3}
"""What another token in a forward pass takes, as a share of a pass of one token. On CPUs, SmolLM2-135M takes 0.07 to
0.09 in 16 bits and 0.13 to 0.2 in 8 bits with AMX, 0.17 with AVX2. On a GPU it is little, but a pass with a guess does
without the kernels for one token a row, so that guesses have to be likely."""
_COST_OF_EXPERTS = 0.5
"""The same of a mixture of experts, where other tokens read other weights: 0.35 to 0.64 on a CPU, with 4 of 32."""
_MOST_IN_A_STEP = {"cpu": 12, "cuda": 128}
"""Tokens in a forward pass up to which one more takes far less than a pass of its own, and, on a CPU, up to which the
matmuls are those of single tokens."""
_FIRST_LENGTH = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 128
"""Steps without a draft's guesses after a wrong one, and the most after many in a row."""


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
        experts: whether the model is a mixture of experts.
    """

    def __init__(self, most: int, device: str = "cpu", draft: _Draft | None = None, *, experts: bool = False) -> None:
        self.most, self.most_in_a_step, self.draft = most, _MOST_IN_A_STEP.get(device, 12), draft
        self.cost = _COST_OF_EXPERTS if experts else _COST.get(device, 0.12)
        self.n_guessed = self.n_right = 0

    def guess(self, rows: Sequence[Row], sampler: Sampler, n_tokens: int) -> list[list[int]]:
        """Returns tokens that each row may go on with; none for rows whose guesses would be wrong too often.

        Args:
            n_tokens: number of tokens that the step feeds anyway.
        """
        most = [max(0, min(self.most, row.most_new - row.n_new - 1)) for row in rows]  # the last one is drawn anyway
        left = self.most_in_a_step - n_tokens
        if self.draft is not None:
            return self.draft.guess(rows, self._paced(rows, most, left), sampler)
        return [_repeats(row).after(row.ids, n) for row, n in zip(rows, self._worth(rows, most, left), strict=True)]

    def _worth(self, rows: Sequence[Row], most: Sequence[int], left: int) -> list[int]:
        """Returns how many tokens to guess for each row, so that a step draws most for what it takes: the likeliest
        ones of all rows, down to that which costs more than it makes the step draw.

        Args:
            most: most tokens of each row.
            left: most tokens of all rows.
        """
        lengths, likeliest = [0] * len(rows), []
        for i, row in enumerate(rows):
            _repeats(row).find(row.ids)
            likeliest += [(chance, i) for chance in _repeats(row).chances(most[i])]
        n_drawn, cost = float(len(rows)), 1 + self.cost * (len(rows) - 1)
        for chance, i in sorted(likeliest, reverse=True)[: max(0, left)]:
            if chance * cost <= self.cost * n_drawn:
                break
            lengths[i] += 1
            n_drawn, cost = n_drawn + chance, cost + self.cost
        return lengths

    def _paced(self, rows: Sequence[Row], most: Sequence[int], left: int) -> list[int]:
        """Returns how many tokens a draft is to guess for each row: none if its guesses were wrong lately.

        Args:
            most: most tokens of each row.
            left: most tokens of all rows.
        """
        lengths = []
        for row, length in zip(rows, most, strict=True):
            pace = _pace(row)
            length = max(0, min(pace.length, length, left))
            if pace.pause:
                pace.pause, length = pace.pause - 1, 0
            left -= length
            lengths.append(length)
        return lengths

    def learn(self, row: Row, n_guessed: int, drawn: Sequence[int]) -> None:
        """Makes guesses longer where they are right, and shorter and rarer where they are not.

        Args:
            n_guessed: number of tokens that were guessed.
            drawn: the tokens that came; all but the last were guessed.
        """
        n_right = len(drawn) - 1
        self.n_guessed += n_guessed
        self.n_right += n_right
        if self.draft is None:
            _repeats(row).learn(n_guessed, drawn)
        elif n_guessed:
            _pace(row).learn(n_guessed, n_right, self.most)


def _repeats(row: Row) -> Repeats:
    """Returns what is known of a row's text."""
    if row.guessing is None:
        row.guessing = Repeats()
    return row.guessing


def _pace(row: Row) -> "_Pace":
    """Returns how much a draft guesses for a row."""
    if row.guessing is None:
        row.guessing = _Pace()
    return row.guessing


class _Pace:
    """How much a draft, of which each guess costs a pass of its own, guesses for a row."""

    def __init__(self) -> None:
        self.length, self.pause, self.next_pause = _FIRST_LENGTH, 0, _FIRST_PAUSE

    def learn(self, n_guessed: int, n_right: int, most: int) -> None:
        if n_right == 0:
            self.length, self.pause = max(1, self.length // 2), self.next_pause
            self.next_pause = min(2 * self.next_pause, _LONGEST_PAUSE)
        else:
            self.length = min(most, 2 * self.length) if n_right == n_guessed else max(1, n_right)
            self.next_pause = _FIRST_PAUSE
