"""Groups near-duplicate texts by the Jaccard similarity of their character 5-grams, with MinHash to find candidates.

Case, Unicode's compatibility forms and runs of spaces do not count. MinHash (Broder 1997) with bands proposes pairs;
each is then measured exactly, so a pair below the threshold is never linked. A pair at the threshold is proposed with a
probability of 99 %, one above it with more; with less where thousands of texts share most of their length. Groups are
the connected components.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

GRAM = 5
"""Characters of a gram."""
_N_HASHES = 128
"""Hashes of a MinHash signature."""
_SLACK = 0.15
"""How far below the threshold an estimate may be for its pair to be measured: 4 standard errors of 128 hashes."""
MOST = 2000
"""Largest bucket of texts that is compared pair by pair; a larger one is divided first."""
_MOST_GRAMS = 1 << 22
"""Most grams that are cached while texts are compared, 8 bytes each."""
_CHUNK = 1 << 20
"""Most characters whose grams are in memory at once; a signature counts as 256 characters."""


def groups(texts: Sequence[str], threshold: float = 0.8) -> np.ndarray:
    """Returns for each text the index of the first near-duplicate in its group, (n,) int64; its own if it has none.

    Args:
        threshold: least Jaccard similarity of two near-duplicates, above 0 and at most 1.
    """
    plain = [normalize(text) for text in texts]
    firsts: dict[str, int] = {}
    first = np.array([firsts.setdefault(text, i) for i, text in enumerate(plain)], dtype=np.int64)
    different = np.array(list(firsts.values()), dtype=np.int64)  # one index for each different text
    if threshold >= 1 or len(different) < 2:
        return first
    parents = _link([plain[i] for i in different], threshold)
    group_of = np.arange(len(plain))
    group_of[different] = different[parents]
    return group_of[first]


def normalize(text: str) -> str:
    """Returns the text in the form in which texts are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _link(texts: Sequence[str], threshold: float) -> np.ndarray:
    """Returns for each of the texts, which all differ, the index of the first one of its group, (n,) int64."""
    signatures = _sign(texts)
    parents = np.arange(len(texts))
    last_bytes = signatures.astype(np.uint8)  # estimates from 8 of 32 bits are as good, and faster to make
    grams = _Grams(texts)
    for bucket in buckets(signatures, _rows_per_band(threshold)):
        waiting = bucket
        while len(waiting) > 1:  # breadth-first search through the bucket
            seeds, waiting = waiting[:1], waiting[1:]
            while len(seeds) and len(waiting):
                found = _like(
                    int(seeds[0]), waiting, grams=grams, last_bytes=last_bytes, parents=parents, threshold=threshold
                )
                seeds, waiting = np.concatenate([seeds[1:], waiting[found]]), waiting[~found]
    return np.array([_root(parents, i) for i in range(len(texts))], dtype=np.int64)


class _Grams:
    """A cache of the grams of texts, emptied when it has _MOST_GRAMS: texts of a bucket come up again and again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.known, self.room = texts, {}, _MOST_GRAMS

    def __getitem__(self, i: int) -> np.ndarray:
        found = self.known.get(i)
        if found is None:
            found = grams_of(self.texts[i])
            if len(found) > self.room:
                self.known, self.room = {}, _MOST_GRAMS
            self.known[i] = found
            self.room -= len(found)
        return found


def _like(
    one: int, others: np.ndarray, grams: _Grams, last_bytes: np.ndarray, parents: np.ndarray, threshold: float
) -> np.ndarray:
    """Links the texts of `others` that are near-duplicates of `one`; returns a mask of those now in its group."""
    agreeing = np.count_nonzero(last_bytes[others] == last_bytes[one], axis=1)
    found = agreeing >= (threshold - _SLACK) * _N_HASHES
    mine = _root(parents, one)
    unknown = [i for i in found.nonzero()[0] if _root(parents, int(others[i])) != mine]
    for i, share in zip(unknown, jaccards(grams[one], [grams[int(others[i])] for i in unknown]), strict=True):
        found[i] = share >= threshold
        if found[i]:
            mine, theirs = _root(parents, one), _root(parents, int(others[i]))
            parents[max(mine, theirs)] = min(mine, theirs)
    for i in unknown:
        found[i] = _root(parents, int(others[i])) == _root(parents, one)
    return found


def _root(parents: np.ndarray, i: int) -> int:
    """Returns the first text of the group of i (union-find with path halving)."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = int(parents[i])
    return i


def jaccards(one: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the Jaccard similarity of the grams of `one` and of each of the others, (n,) float64."""
    if not others:
        return np.zeros(0)
    sizes = np.array([len(other) for other in others])
    together = np.concatenate(others)
    locations = np.minimum(np.searchsorted(one, together), len(one) - 1)
    common = np.add.reduceat((one[locations] == together).astype(np.int64), np.cumsum([0, *sizes[:-1]]))
    return common / (len(one) + sizes - common)


def _rows_per_band(threshold: float) -> int:
    """Returns the most rows of a band with which a pair at the threshold shares a band with a probability of 99 %."""
    candidates = (r for r in range(_N_HASHES, 1, -1) if (1 - threshold**r) ** (_N_HASHES // r) <= 0.01)
    return next(candidates, 1)


def buckets(signatures: np.ndarray, n_rows: int) -> Iterator[np.ndarray]:
    """Yields the indices, in order, of each two or more texts that agree on all rows of a band."""
    all_texts = np.arange(len(signatures))
    for start in range(0, _N_HASHES - n_rows + 1, n_rows):
        yield from _agreeing(signatures, all_texts, start, n_rows)


def _agreeing(
    signatures: np.ndarray, members: np.ndarray, start: int, n_rows: int, more: int = 4
) -> Iterator[np.ndarray]:
    """Yields each two or more members that agree on `n_rows` hashes from `start` on.

    Args:
        more: how many more times a bucket of over MOST texts is divided by the next hashes. Buckets get that large
            where texts share a long phrase and little else.
    """
    columns = np.arange(start, start + n_rows) % _N_HASHES
    band = np.ascontiguousarray(signatures[np.ix_(members, columns)])
    keys = band.view(np.dtype((np.void, band.itemsize * n_rows)))[:, 0]
    _, key_of, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(key_of, kind="stable")
    ends = np.cumsum(counts)
    for key in (counts > 1).nonzero()[0]:
        found = members[order[ends[key] - counts[key] : ends[key]]]
        if len(found) > MOST and more:
            yield from _agreeing(signatures, found, start + n_rows, n_rows=2, more=more - 1)
        else:
            yield found


def _sign(texts: Sequence[str]) -> np.ndarray:
    """Returns the MinHash signatures of the texts, (n, _N_HASHES) uint32."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] its stub has no names

    signatures = np.empty((len(texts), _N_HASHES), dtype=np.uint32)
    start = 0
    while start < len(texts):
        stop, room = start, _CHUNK
        while stop < len(texts) and (stop == start or len(texts[stop]) <= room):
            room -= max(256, len(texts[stop]))
            stop += 1
        grams = [grams_of(text) for text in texts[start:stop]]
        offsets = np.cumsum([0, *map(len, grams)], dtype=np.uint64)
        digests = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(grams), offsets, _N_HASHES, 1)
        signatures[start:stop] = digests.to_rows()
        start = stop
    return signatures


def grams_of(text: str) -> np.ndarray:
    """Returns the sorted hashes of the different grams of a text, (g,) uint64; a shorter text is one gram."""
    codes = np.frombuffer(text.ljust(GRAM).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    n = len(codes) - GRAM + 1
    hashes = np.zeros(n, dtype=np.uint64)
    for k in range(GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + n]  # an odd multiplier, modulo 2^64
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)  # spread to all bits
    return np.unique(hashes ^ (hashes >> np.uint64(29)))
