"""Indexes the word n-grams of evaluation sets by hash, and searches for them in many texts at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.data.curate.contamination.questions import Question, words

LEAST_WORDS = {"asked": 5, "answers": 8}
"""Fewest words of a text that is searched for; a shorter one may occur anywhere by chance."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Multiplier of the rolling hash, odd."""
_BITS = 24
"""Leading bits of a hash by which a table rules out most n-grams without a binary search."""


@dataclass(frozen=True)
class _Hits:
    """Where n-grams were found, (h,) each: in which text, of which question, and whether of its answer."""

    text: np.ndarray
    question: np.ndarray
    is_answer: np.ndarray


class Index:
    """An index of the word n-grams of all questions and answers; a text of fewer than n words is one gram.

    N-grams that many questions have in common are a task's own phrases, and are left out.

    Args:
        tasks: the number of each question's task.
        n_words: words of an n-gram.
    """

    def __init__(self, questions: Sequence[Question], tasks: Sequence[int], n_words: int) -> None:
        self.n_words = n_words
        self.vocabulary: dict[str, int] = {}  # word -> id; 0 is any word of no question, and the gap between two texts
        owners: list[tuple[int, int, bool, np.ndarray]] = []
        for q, question in enumerate(questions):
            for kind in ("asked", "answers"):
                for text in getattr(question, kind):
                    ids = [self.vocabulary.setdefault(w, len(self.vocabulary) + 1) for w in words(text)]
                    if len(ids) >= LEAST_WORDS[kind]:
                        owners.append((q, min(len(ids), n_words), kind == "answers", np.array(ids)))
        self.codes = np.random.default_rng(0).integers(1, 2**63, len(self.vocabulary) + 1, dtype=np.uint64)
        self.searched = np.zeros(len(questions), dtype=bool)
        self.tables = {n: self.table([o for o in owners if o[1] == n], tasks) for n in sorted({o[1] for o in owners})}

    def table(
        self, owners: Sequence[tuple[int, int, bool, np.ndarray]], tasks: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns (sorted hashes, their questions, whether they are of answers, a table of the first _BITS bits)."""
        grams = [self.hashes(ids, n) for _, n, _, ids in owners]
        counts = [len(r) for r in grams]
        hashes = np.concatenate(grams)
        question = np.repeat([o[0] for o in owners], counts)
        is_answer = np.repeat([o[2] for o in owners], counts)
        own = ~self.shared(hashes, question, np.asarray(tasks))
        hashes, question, is_answer = hashes[own], question[own], is_answer[own]
        self.searched[question] = True
        order = np.argsort(hashes, kind="stable")
        first_bits = np.zeros(1 << _BITS, dtype=bool)
        first_bits[hashes >> np.uint64(64 - _BITS)] = True
        return hashes[order], question[order], is_answer[order], first_bits

    def shared(self, hashes: np.ndarray, question: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Returns which n-grams more than 10, and more than a twentieth, of a task's questions have, (r,) bool."""
        most = np.maximum(10, np.bincount(tasks) // 20)
        _, gram = np.unique(hashes, return_inverse=True)
        once = np.unique(np.stack([gram, tasks[question], question]), axis=1)  # an n-gram counts once in a question
        pairs, counts = np.unique(once[:2], axis=1, return_counts=True)
        common = pairs[0][counts > most[pairs[1]]]
        return np.isin(gram, common)

    def hashes(self, ids: np.ndarray, n: int) -> np.ndarray:
        """Returns the hash of each n-gram, (len(ids) - n + 1,) uint64; 0 where a word is of no question."""
        codes = self.codes[ids]
        n_grams = len(ids) - n + 1
        if n_grams <= 0:
            return np.zeros(0, dtype=np.uint64)
        found = np.zeros(n_grams, dtype=np.uint64)
        for k in range(n):
            found = found * _MULTIPLIER + codes[k : k + n_grams]
        n_unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        return np.where(n_unknown[n:] == n_unknown[:-n], found, 0)

    def search(self, texts: Sequence[str]) -> _Hits:
        """Returns which questions and answers have an n-gram in common with which of the texts."""
        get = self.vocabulary.get
        ids: list[int] = [0]
        offsets = [0]
        for text in texts:
            offsets.append(len(ids))
            ids += [get(word, 0) for word in words(text)]
            ids.append(0)
        array, starts = np.array(ids), np.array(offsets[1:])
        found = [self.look_up(array, n) for n in self.tables]
        positions, question, is_answer = (
            (np.concatenate(part) for part in zip(*found, strict=True)) if found else _EMPTY
        )
        text = np.searchsorted(starts, positions, side="right") - 1
        return _Hits(*np.unique(np.stack([text, question, is_answer]), axis=1))

    def look_up(self, ids: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (position, question, whether it is of its answer) of each n-gram that is in the index, (h,) each."""
        hashes, question, is_answer, first_bits = self.tables[n]
        grams = self.hashes(ids, n)
        positions = (first_bits[grams >> np.uint64(64 - _BITS)] & (grams != 0)).nonzero()[0]
        low, high = (np.searchsorted(hashes, grams[positions], side=side) for side in ("left", "right"))
        counts = high - low
        entries = np.repeat(low, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(positions, counts), question[entries], is_answer[entries]


_EMPTY = (np.zeros(0, dtype=np.int64),) * 3
"""Result of `look_up` where there are no n-grams."""
