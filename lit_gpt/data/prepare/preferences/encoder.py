"""Tokenizes preferences: both answers of a pair after the same prompt, or an answer with its verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from lit_gpt.args import PrepareArgs
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.pieces import Pair, total
from lit_gpt.data.prepare.preferences.rows import EQUAL, Preference
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.data.store import PREFERENCES
from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError
from lit_gpt.tokenizer import Tokenizer


class PreferenceEncoder(Encoder):
    """An encoder that makes of each preference a sample an answer, the preferred one first.

    All samples of a pair are kept, or none is. An answer is never truncated but with `--truncation cut_end`, which is
    counted.
    """

    def __init__(self, tokenizer: Tokenizer, args: PrepareArgs, limit: int) -> None:
        super().__init__(tokenizer, replace(args, last_turn_only=False, mask_inputs=True), limit)
        self.n_answers = 0
        """Answers of each row: 2 of pairs, 1 of an answer with its verdict; 0 before the first row."""

    def more_meta(self) -> dict[str, str]:
        """Returns what meta.json says of the samples besides what is in every one."""
        return {PREFERENCES: "pairs" if self.n_answers == 2 else "labels"}

    def encode(self, rows: Sequence[Row], counts: Counts) -> list[Pair]:
        """Returns (ids, labels) of each answer of the rows that are kept, in order, and counts what became of all.

        Raises:
            UserError: see `Encoder.encode`.
        """
        answers = [_answers(row) for row in rows]
        for row, group in zip(rows, answers, strict=True):
            self.n_answers = self.n_answers or len(group)
            if len(group) != self.n_answers:
                raise UserError(f"{row.where}: some entries have two answers, and others have one and a label")
        if self.args.truncation in ("drop", "cut_end"):
            found = Counts()
            try:
                samples = self._encode(list(chain.from_iterable(answers)), found)
            except LimitError:  # one by one, to know which it is
                samples = []
            if len(samples) == sum(map(len, answers)):  # as nearly always: nothing was dropped
                groups = [samples[i : i + self.n_answers] for i in range(0, len(samples), self.n_answers)]
                return self._kept(list(zip(rows, groups, strict=True)), counts, found)
        groups = []
        found = Counts()
        for row, group in zip(rows, answers, strict=True):
            one = Counts()
            fitted = self._with_short_prompt(group, one) if self.args.truncation == "cut_prompt" else group
            samples: list[Pair] = []
            try:
                samples = self._encode(fitted, one) if fitted else []
            except LimitError as e:
                one = Counts()
                self._drop(row, e, one)
            if len(samples) == len(group):
                groups.append((row, samples))
            else:
                one = Counts(dropped=Counter([next(iter(one.dropped))]))  # once, not once an answer
            found.add(one)
        return self._kept(groups, counts, found, n_read=len(rows))

    def _kept(
        self, groups: list[tuple[Row, list[Pair]]], counts: Counts, found: Counts, n_read: int | None = None
    ) -> list[Pair]:
        """Returns the samples of the groups whose answers differ, and adds to `counts` what became of all rows."""
        kept = [(row, group) for row, group in groups if len(group) == 1 or group[0] != group[1]]
        found.read = len(groups) if n_read is None else n_read
        found.kept = len(kept)
        if len(kept) < len(groups):
            found.dropped[EQUAL] += len(groups) - len(kept)
        counts.add(found)
        if self.n_answers == 1:
            return [(*group[0], isinstance(row, Preference) and row.desirable) for row, group in kept]  # type: ignore[misc]
        return list(chain.from_iterable(group for _, group in kept))

    def _with_short_prompt(self, group: Sequence[Row], counts: Counts) -> Sequence[Row]:
        """Returns the rows after the user's texts in their prompt were truncated alike; none if that does not help."""
        n, before = _n_prompt(group[0]), group
        while True:
            found = [self.exchanges(row, row.turns, Counts()) for row in group]
            if not all(found):
                return group  # which the encoder counts
            excess = max(total(pieces) for pieces in self.pieces([f for f in found if f])) - self.limit
            if excess <= 0:
                counts.cut["in the prompt"] += group is not before
                return group
            prompt = group[0].turns[:n]
            shorter = self._shortened(prompt, excess)
            if shorter == prompt:
                counts.dropped[self._too_long] += 1
                return []
            group = [replace(row, turns=(*shorter, *row.turns[n:])) for row in group]


def _answers(row: Row) -> tuple[Row, ...]:
    return row.answers if isinstance(row, Preference) else (row,)


def _n_prompt(row: Row) -> int:
    return row.n_prompt if isinstance(row, Preference) else len(row.turns) - 1
