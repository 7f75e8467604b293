"""Which texts are nearly the same: groups by the Jaccard similarity of their character 5-grams, found by MinHash.

Case, Unicode's compatibility forms and runs of spaces do not count. MinHash (Broder 1997) in bands proposes pairs; each
is then measured exactly, so that a pair below the threshold is never linked. A pair at the threshold is proposed with a
probability of 99 %, one above it with more; with less, where thousands of texts share most of their length. Groups are
the connected components.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

GRAM = 5
_N_HASHES = 128
_SLACK = 0.15
"""How far below the threshold an estimate may lie (4 standard errors of 128 hashes) for its pair to be measured."""
MOST = 2000
"""Texts that are compared with each other at most."""
_MOST_GRAMS = 1 << 22
"""Grams that are remembered while texts are compared, of 8 bytes each."""
_CHUNK = 1 << 20
"""Characters whose grams are in memory at a time; a signature takes as much as 256 of them."""


def groups(texts: Sequence[str], threshold: float = 0.8) -> np.ndarray:
    """(n,) int64: for each text the index of the first one of its group; a text alone has its own index.

    Args:
        threshold: least share of 5-grams that two near-identical texts have in common, above 0 and at most 1.
    """
    plain = [normalize(text) for text in texts]
    firsts: dict[str, int] = {}
    first = np.array([firsts.setdefault(text, i) for i, text in enumerate(plain)], dtype=np.int64)
    unlike = np.array(list(firsts.values()), dtype=np.int64)  # one of each text
    if threshold >= 1 or len(unlike) < 2:
        return first
    parents = _link([plain[i] for i in unlike], threshold)
    group_of = np.arange(len(plain))
    group_of[unlike] = unlike[parents]
    return group_of[first]


def normalize(text: str) -> str:
    """The text as it is compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _link(texts: Sequence[str], threshold: float) -> np.ndarray:
    """(n,) int64: for each of different texts the first one of its group."""
    signatures = _sign(texts)
    parents = np.arange(len(texts))
    last_bytes = signatures.astype(np.uint8)  # as good for an estimate, and faster to compare
    grams = _Grams(texts)
    for bucket in buckets(signatures, _rows_per_band(threshold)):
        waiting = bucket
        while len(waiting) > 1:  # breadth first through the bucket
            seeds, waiting = waiting[:1], waiting[1:]
            while len(seeds) and len(waiting):
                found = _like(
                    int(seeds[0]), waiting, grams=grams, last_bytes=last_bytes, parents=parents, threshold=threshold
                )
                seeds, waiting = np.concatenate([seeds[1:], waiting[found]]), waiting[~found]
    return np.array([_root(parents, i) for i in range(len(texts))], dtype=np.int64)


class _Grams:
    """The grams of texts; the last _MOST_GRAMS are kept, since each text of a bucket is met again and again."""

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
    """Which of `others` are in the group of `one` now, a mask; links those that are near enough."""
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
    """The first of the group of i; shortens the way there."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = int(parents[i])
    return i


def jaccards(one: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) float64: for each of the others the share of the grams of either that both have."""
    if not others:
        return np.zeros(0)
    sizes = np.array([len(other) for other in others])
    together = np.concatenate(others)
    locations = np.minimum(np.searchsorted(one, together), len(one) - 1)
    common = np.add.reduceat((one[locations] == together).astype(np.int64), np.cumsum([0, *sizes[:-1]]))
    return common / (len(one) + sizes - common)


def _rows_per_band(threshold: float) -> int:
    """Most rows in a band for which a pair at the threshold shares one with a probability of 99 %."""
    fit = (r for r in range(_N_HASHES, 1, -1) if (1 - threshold**r) ** (_N_HASHES // r) <= 0.01)
    return next(fit, 1)


def buckets(signatures: np.ndarray, n_rows: int) -> Iterator[np.ndarray]:
    """Indices, in order, of texts that agree on all rows of a band, wherever there is more than one."""
    everybody = np.arange(len(signatures))
    for start in range(0, _N_HASHES - n_rows + 1, n_rows):
        yield from _agreeing(signatures, everybody, start, n_rows)


def _agreeing(
    signatures: np.ndarray, members: np.ndarray, start: int, n_rows: int, more: int = 4
) -> Iterator[np.ndarray]:
    """The members that agree on `n_rows` hashes from `start` on, wherever there is more than one.

    Args:
        more: times that more than MOST of them are divided by the hashes that come next. So many agree where texts
            share a long phrase and little else.
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
    """(n, _N_HASHES) uint32: the MinHash signatures of the texts."""
    from rensa import RMinHash

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
    """Hashes of the different runs of GRAM characters, sorted, (g,) uint64; a shorter text is one run."""
    codes = np.frombuffer(text.ljust(GRAM).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    n = len(codes) - GRAM + 1
    hashes = np.zeros(n, dtype=np.uint64)
    for k in range(GRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + n]  # an odd multiplier, modulo 2^64
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)  # spread to all bits
    return np.unique(hashes ^ (hashes >> np.uint64(29)))
