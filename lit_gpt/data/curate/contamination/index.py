"""Runs of words of the evaluation sets, by hash, and a search for them in many texts at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.data.curate.contamination.questions import Question, words

LEAST_WORDS = {"asked": 5, "answers": 8}
"""A text with fewer words than that may be anywhere: it is not searched for by itself."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BITS = 24
"""Of a hash, that a table tells at once whether any run has them."""


@dataclass(frozen=True)
class _Hits:
    """Where runs were found: (h,) each, of text and question and whether it was the question's answer."""

    text: np.ndarray
    question: np.ndarray
    is_answer: np.ndarray


class Index:
    """The runs of n words of all questions and answers; a shorter text is one run.

    Runs that many questions have in common are a task's own phrases, and are left out.

    Args:
        tasks: for each question the number of its task.
    """

    def __init__(self, questions: Sequence[Question], tasks: Sequence[int], n_words: int) -> None:
        self.n_words = n_words
        self.vocabulary: dict[str, int] = {}  # words of the questions; 0 is any other word, and what is between texts
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
        """(runs sorted by hash, their questions, whether they are answers, a table of the first _BITS bits)."""
        runs = [self.hashes(ids, n) for _, n, _, ids in owners]
        counts = [len(r) for r in runs]
        hashes = np.concatenate(runs)
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
        """(r,) bool: the runs that more than 10, and more than a twentieth, of a task's questions have."""
        most = np.maximum(10, np.bincount(tasks) // 20)
        _, run = np.unique(hashes, return_inverse=True)
        once = np.unique(np.stack([run, tasks[question], question]), axis=1)  # a run twice in a question counts once
        pairs, counts = np.unique(once[:2], axis=1, return_counts=True)
        common = pairs[0][counts > most[pairs[1]]]
        return np.isin(run, common)

    def hashes(self, ids: np.ndarray, n: int) -> np.ndarray:
        """Hash of each run of n words, (len(ids) - n + 1,) uint64; 0 where a word is none of the questions'."""
        codes = self.codes[ids]
        n_runs = len(ids) - n + 1
        if n_runs <= 0:
            return np.zeros(0, dtype=np.uint64)
        found = np.zeros(n_runs, dtype=np.uint64)
        for k in range(n):
            found = found * _MULTIPLIER + codes[k : k + n_runs]
        strangers = np.concatenate([[0], np.cumsum(ids == 0)])
        return np.where(strangers[n:] == strangers[:-n], found, 0)

    def search(self, texts: Sequence[str]) -> _Hits:
        """Which questions and answers have a run in common with which of the texts."""
        get = self.vocabulary.get
        ids: list[int] = [0]
        offsets = [0]
        for text in texts:
            offsets.append(len(ids))
            ids += [get(word, 0) for word in words(text)]
            ids.append(0)
        array, starts = np.array(ids), np.array(offsets[1:])
        found = [self.look_up(array, n) for n in self.tables]
        locations, question, is_answer = (
            (np.concatenate(part) for part in zip(*found, strict=True)) if found else _EMPTY
        )
        text = np.searchsorted(starts, locations, side="right") - 1
        return _Hits(*np.unique(np.stack([text, question, is_answer]), axis=1))

    def look_up(self, ids: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place among the words, question, whether it is its answer) of each run of n words that is in the index."""
        hashes, question, is_answer, first_bits = self.tables[n]
        runs = self.hashes(ids, n)
        locations = (first_bits[runs >> np.uint64(64 - _BITS)] & (runs != 0)).nonzero()[0]
        low, high = (np.searchsorted(hashes, runs[locations], side=side) for side in ("left", "right"))
        counts = high - low
        entries = np.repeat(low, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(locations, counts), question[entries], is_answer[entries]


_EMPTY = (np.zeros(0, dtype=np.int64),) * 3
