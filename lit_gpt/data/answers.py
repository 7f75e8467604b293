"""Answers to the same prompt that are learned from together: a row has the two of a pair, or as many as a group has."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lit_gpt.data.packing import common_length, head
from lit_gpt.data.store import IGNORE, MARKS, PREFERENCES, Samples, computed_lengths
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Answers(Samples):
    """Samples that each hold several answers, laid end to end, every one with its prompt before it.

    Where prefixes are shared, the prompt of a row is computed once for all of its answers.
    """

    shares_within: ClassVar[bool] = True
    inner: np.ndarray = field(kw_only=True)
    """Offsets of the answers: answer a spans inner[a] .. inner[a + 1]."""
    firsts: np.ndarray = field(kw_only=True)
    """Row i has the answers firsts[i] .. firsts[i + 1] - 1, (n + 1,)."""
    desirable: np.ndarray | None = field(default=None, kw_only=True)
    """Whether each row's answer is a desired one, (n,) bool; None where a row's first answer is preferred to others."""
    reference: np.ndarray | None = field(default=None, kw_only=True, compare=False)
    """Log-probability of each answer under the reference, (n_answers,) fp32, NaN where nobody asked; None for 0."""
    share_up_to: int = field(default=0, kw_only=True)
    """Longest answer, prompt included, that may share its prompt; 0 shares none."""

    @property
    def longest(self) -> int:
        return int(np.diff(self.inner).max(initial=0))

    @property
    def n_answers(self) -> int:
        return len(self.inner) - 1

    def answer(self, a: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and labels of an answer with its prompt, (T,) each."""
        span = slice(self.inner[a], self.inner[a + 1])
        return self.ids[span], self.labels[span]

    def of(self, i: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns ids and labels of each answer of a row."""
        return [self.answer(a) for a in range(self.firsts[i], self.firsts[i + 1])]

    def row_of(self, a: int) -> int:
        """Returns the row of an answer."""
        return int(self.firsts.searchsorted(a, side="right")) - 1

    def targets(self, a: int) -> np.ndarray:
        """Returns the target tokens of an answer."""
        ids, labels = self.answer(a)
        return np.asarray(ids[labels != IGNORE])

    def prompt(self, i: int) -> np.ndarray:
        """Returns the tokens before the first target of a row's first answer."""
        ids, labels = self.answer(int(self.firsts[i]))
        found = (np.asarray(labels) != IGNORE).nonzero()[0]
        return np.asarray(ids[: found[0] if len(found) else len(ids)])

    def reference_of(self, answers: Sequence[int]) -> np.ndarray:
        """Returns the log-probabilities of these answers under the reference, (n,) fp32."""
        if self.reference is None:
            return np.zeros(len(answers), dtype=np.float32)
        return np.asarray(self.reference[list(answers)], dtype=np.float32)

    def desirable_of(self, rows: Sequence[int]) -> np.ndarray:
        """Returns whether the first answers of these rows are desired ones, (n,) bool."""
        return np.ones(len(rows), dtype=bool) if self.desirable is None else self.desirable[list(rows)]

    @cached_property
    def n_targets_of(self) -> np.ndarray:
        """Number of targets of each answer, (n_answers,)."""
        counts = np.zeros(self.n_answers, dtype=np.int64)
        for a in range(self.n_answers):
            counts[a] = (self.answer(a)[1][1:] != IGNORE).sum()
        return counts

    @cached_property
    def n_shared(self) -> np.ndarray:
        """Tokens at the beginning of each row's answers that are computed once, (n,)."""
        found = np.zeros(len(self), dtype=np.int64)
        if self.share_up_to:
            whole = np.diff(self.inner)
            for i in range(len(self)):
                first, last = self.firsts[i : i + 2]
                if last - first > 1 and whole[first:last].max() <= self.share_up_to:
                    found[i] = _shared([self.answer(a) for a in range(first, last)])
        return found

    @cached_property
    def computed_of_answers(self) -> np.ndarray:
        """Tokens that a forward pass over each answer alone computes, its prompt included, (n_answers,)."""
        return computed_lengths(self.labels, self.inner)

    @cached_property
    def computed(self) -> np.ndarray:
        """Tokens that a forward pass over each row computes, (n,)."""
        sums = np.concatenate([[0], np.cumsum(self.computed_of_answers)])
        return np.diff(sums[self.firsts]) - (np.diff(self.firsts) - 1) * self.n_shared

    def sharing(self, share_up_to: int) -> "Answers":
        """Returns the same rows, whose prompts may be computed once where no answer is longer than `share_up_to`."""
        return self if share_up_to == self.share_up_to else replace(self, share_up_to=share_up_to)

    def contents(self) -> str:
        """Returns a hash of all lengths, tokens and labels, and of the verdicts."""
        parts = [super().contents()]
        for values in (self.inner, self.firsts, self.desirable):
            parts.append("" if values is None else Samples(values, values[:0], values[:0]).contents())
        return "-".join(filter(None, parts))


def read_answers(folder: Path, split: str, samples: Samples, meta: dict[str, Any]) -> Answers:
    """Returns the samples of a split of a data set of preferences as rows of answers.

    Raises:
        UserError: the array of verdicts is missing or does not go with the samples, or a pair is not whole.
    """
    n, kind = len(samples), meta[PREFERENCES]
    size = 2 if kind == "pairs" else 1
    if n % size:
        raise UserError(f"{folder}: {split} has {n:,} answers, which are no pairs; prepare it again")
    desirable = None
    if size == 1:
        path = folder / f"{split}.{MARKS}.npy"
        try:
            desirable = np.load(path).astype(bool)
        except (OSError, ValueError) as e:
            raise UserError(f"{path} is missing or damaged; prepare it again") from e
        if desirable.shape != (n,):
            raise UserError(f"{path} has {len(desirable):,} verdicts for {n:,} answers; prepare it again")
    return grouped(samples, np.arange(0, n + 1, size), desirable)


def grouped(samples: Samples, firsts: np.ndarray, desirable: np.ndarray | None = None) -> Answers:
    """Returns samples as rows of answers: row i has the samples firsts[i] .. firsts[i + 1] - 1."""
    inner = np.asarray(samples.offsets)
    return Answers(
        samples.ids,
        samples.labels,
        inner[firsts],
        samples.largest,
        inner=inner,
        firsts=np.asarray(firsts),
        desirable=desirable,
    )


def repeated(samples: Samples, n: int) -> Answers:
    """Returns rows of n answers, which all are the sample's own: what a run computes that draws as many to a prompt."""
    times = np.repeat(np.arange(len(samples)), n)
    parts = [samples[int(i)] for i in times]
    ids, labels = (np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))
    offsets = np.cumsum([0, *(len(part[0]) for part in parts)], dtype=np.int64)
    return grouped(Samples(ids, labels, offsets, samples.largest), np.arange(0, len(times) + 1, n))


def judged_alone(answers: Answers) -> Answers:
    """Returns each answer of pairs as a row of its own, of which the first of each pair is a desired one."""
    if answers.desirable is not None:
        return answers
    desirable = np.arange(answers.n_answers) % 2 == 0
    return replace(answers, offsets=answers.inner, firsts=np.arange(answers.n_answers + 1), desirable=desirable)


def with_others(answers: Answers, apart: int = 1) -> Answers:
    """Returns rows of two answers: the row's own, and that of the row `apart` rows later, which suits its prompt badly.

    Args:
        answers: rows of one answer each.
    """
    n, made = len(answers), []
    for i in range(n):
        prompt, (ids, labels) = answers.prompt(i), answers.answer((i + apart) % n)
        other = np.asarray(ids[len(answers.prompt((i + apart) % n)) :])
        masked = np.full(len(prompt), IGNORE, dtype=np.asarray(labels).dtype)
        made += [answers.answer(i), (np.concatenate([prompt, other]), np.concatenate([masked, labels[-len(other) :]]))]
    ids, labels = (np.concatenate([np.asarray(part[k]) for part in made]) for k in (0, 1))
    offsets = np.cumsum([0, *(len(part[0]) for part in made)], dtype=np.int64)
    return grouped(Samples(ids, labels, offsets, answers.largest), np.arange(0, 2 * n + 1, 2), answers.desirable)


def _shared(answers: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Returns the number of tokens that all answers begin with and that come before what predicts their targets."""
    heads = [head(*answer) for answer in answers]
    return min(common_length(heads[0], other) for other in heads[1:])
