"""Cuts texts into character 5-grams, as hashes, and measures by them how similar two texts are."""

from collections.abc import Sequence

import numpy as np

GRAM = 5
"""Characters of a gram."""
_MOST_CACHED = 1 << 22
"""Most characters of texts whose grams are all kept, 8 bytes each; those of more are made when they are compared."""
_MOST_COMPARED = 1 << 20
"""Most characters of texts that are compared at once."""


def grams_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of the grams of all texts, one text after the other, (g,) uint64, and their offsets, (n + 1,).

    A text that is shorter than a gram is one gram. A gram that comes twice in a text is there twice.
    """
    padded = [text.ljust(GRAM) for text in texts]
    lengths = np.fromiter(map(len, padded), dtype=np.int64, count=len(padded))
    offsets = np.cumsum(np.concatenate([[0], lengths - GRAM + 1]))
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    n = max(0, len(codes) - GRAM + 1)
    hashes = np.zeros(n, dtype=np.uint64)
    for k in range(GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + n]  # an odd multiplier, modulo 2^64
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)  # spread to all bits
    hashes ^= hashes >> np.uint64(29)
    inside = np.ones(n, dtype=bool)
    for k in range(1, GRAM):  # those that begin in one text and end in the next
        inside[np.cumsum(lengths)[:-1] - k] = False
    return hashes[inside], offsets


class _Sets:
    """The sets of grams of a few texts: one sorted array in which a gram stands behind the number of its text."""

    def __init__(self, texts: Sequence[str]) -> None:
        hashes, offsets = grams_of(texts)
        self.bits = np.uint64(64 - max(1, (len(texts) - 1).bit_length()))
        owners = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(offsets))
        keys = np.sort((owners << self.bits) | (hashes >> (np.uint64(64) - self.bits)))
        self.keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        self.offsets = np.searchsorted(self.keys, np.arange(len(texts) + 1, dtype=np.uint64) << self.bits)
        self.offsets[-1] = len(self.keys)  # the shift may have lost the last number's only bit
        self.sizes = np.diff(self.offsets)

    def jaccards(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns the Jaccard similarity of the texts of each pair, (p,) float64."""
        small, large = np.where(self.sizes[left] <= self.sizes[right], (left, right), (right, left))
        order = np.argsort(large)  # so that what is looked up one after the other stands close together
        small, large = small[order], large[order]
        sizes = self.sizes[small]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        own = self.keys[np.repeat(self.offsets[small] - (ends - sizes), sizes) + np.arange(total)]
        looked_up = (own & ((np.uint64(1) << self.bits) - np.uint64(1))) | np.repeat(
            large.astype(np.uint64) << self.bits, sizes
        )
        at = np.searchsorted(self.keys, looked_up)
        there = self.keys[np.minimum(at, len(self.keys) - 1)] == looked_up
        common = np.diff(np.concatenate([[0], np.cumsum(there)[ends - 1]])) if len(ends) else ends
        found = np.empty(len(left))
        found[order] = common / (self.sizes[small] + self.sizes[large] - common)
        return found


class Measure:
    """Measures the Jaccard similarity of the sets of grams of two texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.all = _Sets(texts) if self.lengths.sum() <= _MOST_CACHED else None

    def jaccards(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns the similarity of texts left[i] and right[i] for each i, (p,) float64."""
        found = np.empty(len(left))
        taken = np.cumsum(self.lengths[left] + self.lengths[right])
        start = 0
        while start < len(left):
            before = taken[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(taken, before + _MOST_COMPARED, side="right")))
            part = slice(start, stop)
            if self.all is not None:
                found[part] = self.all.jaccards(left[part], right[part])
            else:
                which, index = np.unique(np.concatenate([left[part], right[part]]), return_inverse=True)
                sets = _Sets([self.texts[int(i)] for i in which])
                found[part] = sets.jaccards(*index.reshape(2, -1))
            start = stop
        return found
