"""Groups near-duplicate texts by the Jaccard similarity of their character 5-grams, with MinHash to find candidates.

Case, Unicode's compatibility forms and runs of spaces do not count. MinHash proposes pairs; each is then measured
exactly, so a pair below the threshold is never linked. A pair at the threshold is proposed with a probability of 99 %,
one above it with more; with less where many texts share most of their length, since the number of pairs is bounded.
Groups are the connected components. Of a text that is longer than any sample may be, the beginning is compared.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from lit_gpt.data.prepare import minhash
from lit_gpt.data.prepare.grams import Measure
from lit_gpt.data.prepare.texts import Texts, firsts_of

_FEW = 128
"""Number of texts up to which all pairs are candidates."""
_PATIENCE = 64
"""Unsuccessful measurements of a text after which only pairs whose estimate is at the threshold are measured."""
_MOST = 1 << 20
"""Characters by which texts are compared; comparing those of 20 MB as a whole would take 50 times their size."""
_REMEMBERED = 1 << 21
"""Number of pairs of which it is remembered that they were measured."""


def groups(texts: Sequence[str], threshold: float = 0.8) -> np.ndarray:
    """Returns for each text the index of the first near-duplicate in its group, (n,) int64; its own if it has none.

    Time and memory are linear in the length of the texts.

    Args:
        threshold: least Jaccard similarity of two near-duplicates, above 0 and at most 1.
    """
    plain = normalized(texts)
    first, different = firsts_of(plain, len(plain))
    if threshold >= 1 or len(different) < 2:
        return first
    group_of = np.arange(len(plain))
    group_of[different] = different[_link(plain.take(different), threshold)]
    return group_of[first]


def normalize(text: str) -> str:
    """Returns the text in the form in which texts are compared, at most the first `_MOST` characters of it."""
    return " ".join(unicodedata.normalize("NFKC", text[:_MOST]).casefold().split())[:_MOST].rstrip()


def normalized(texts: Sequence[str]) -> Texts:
    """Returns the texts in the form in which they are compared; the same object if they are in it already."""
    if isinstance(texts, Texts) and all(normalize(text) == text for text in texts):
        return texts
    return Texts(map(normalize, texts))


def _link(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Returns for each of the texts, which all differ, the index of the first one of its group, (n,) int64."""
    signatures = minhash.sign(texts)
    roots = np.arange(len(texts))
    measure = Measure(texts)
    tried = _Tried(len(texts))
    for left, right, estimates in _candidates(signatures, threshold, roots):
        new = tried.new(left, right, estimates >= threshold)
        left, right = left[new], right[new]
        near = measure.jaccards(left, right) >= threshold
        tried.add(left[~near], right[~near])
        _join(roots, left[near], right[near])
    return minhash.resolved(roots, np.arange(len(texts)))


def _candidates(signatures: np.ndarray, threshold: float, roots: np.ndarray) -> Iterator[minhash.Estimated]:
    """Yields pairs that may be near-duplicates: of few texts all pairs, of more those that MinHash proposes."""
    if len(signatures) <= _FEW:
        yield minhash.likely(signatures, np.triu_indices(len(signatures), 1), threshold)
    else:
        yield from minhash.candidates(signatures, threshold, roots)


class _Tried:
    """The memory of pairs that were measured and are no near-duplicates."""

    def __init__(self, n: int) -> None:
        self.failures = np.zeros(n, dtype=np.uint8)
        self.slots = np.full(min(_REMEMBERED, 1 << (8 * n).bit_length()), -1, dtype=np.int64)

    def new(self, left: np.ndarray, right: np.ndarray, promising: np.ndarray) -> np.ndarray:
        """Returns which pairs are to be measured, (p,) bool: new ones, and after many failures promising ones only.

        A pair that has lost its slot to another one is measured again.
        """
        codes, slots = self._codes(left, right)
        patient = np.minimum(self.failures[left], self.failures[right]) < _PATIENCE
        return (self.slots[slots] != codes) & (promising | patient)

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Remembers that these pairs are no near-duplicates."""
        codes, slots = self._codes(left, right)
        self.slots[slots] = codes
        texts, counts = np.unique(np.concatenate([left, right]), return_counts=True)
        self.failures[texts] = np.minimum(self.failures[texts] + counts, 255)

    def _codes(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each pair a number of its own, and its slot."""
        codes = np.minimum(left, right) * len(self.failures) + np.maximum(left, right)
        mixed = (codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        return codes, (mixed & np.uint64(len(self.slots) - 1)).astype(np.int64)


def _join(roots: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Joins the groups of the texts of each pair, in place; the root of a group is its first text."""
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        mine, theirs = _root(roots, a), _root(roots, b)
        roots[max(mine, theirs)] = min(mine, theirs)


def _root(parents: np.ndarray, i: int) -> int:
    """Returns the root of the group of text i (union-find with path halving)."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = int(parents[i])
    return i
