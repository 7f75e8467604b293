"""Proposes pairs of texts that may be near-duplicates, by MinHash with bands (Broder 1997).

Texts that agree on all hashes of a band are a bucket. Its texts are sorted by the hashes that follow, so that the more
similar two are, the closer they stand (as in an LSH forest, Bawa et al. 2005), and each is paired with the next MOST
only: the number of pairs is linear in that of the texts, however many of them are alike.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lit_gpt.data.prepare.grams import grams_of
from lit_gpt.data.prepare.texts import chunks

N_HASHES = 128
"""Hashes of a MinHash signature."""
MOST = 32
"""Most other texts of a bucket with which a text is paired: all of them in buckets of up to 33, neighbors in larger."""
_SLACK = 0.15
"""How far below the threshold an estimate may be for its pair to be measured: 4 standard errors of 128 hashes."""
_FEW = 32
"""Hashes of a first estimate, with twice the slack, which most pairs do not pass."""
_NEXT = 16
"""Hashes after a band by which the texts of its bucket are sorted."""
_AT_ONCE = 1 << 15
"""Texts of buckets that are looked at together."""
_CHUNK = 1 << 20
"""Most characters whose grams are in memory at once; a signature counts as 256 characters."""
_Pairs = tuple[np.ndarray, np.ndarray]
"""Indices of the first and of the second text of each pair, (p,) int64 each."""
Estimated = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The same, and the estimated similarity of each pair, (p,) float64."""


def sign(texts: Sequence[str]) -> np.ndarray:
    """Returns the MinHash signatures of the texts, (n, N_HASHES) uint8.

    The last 8 of 32 bits are kept: two hashes that differ agree in those only once in 256 times.
    """
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] its stub has no names

    signatures = np.empty((len(texts), N_HASHES), dtype=np.uint8)
    for start, part in chunks(texts, _CHUNK, least=256):
        grams, offsets = grams_of(part)
        rows = RMinHash.digest_matrix_from_flat_token_hashes(grams, offsets.astype(np.uint64), N_HASHES, 1).to_rows()
        signatures[start : start + len(part)] = np.array(rows, dtype=np.uint32).astype(np.uint8)
    return signatures


def rows_per_band(threshold: float) -> int:
    """Returns the most rows of a band with which a pair at the threshold shares a band with a probability of 99 %."""
    candidates = (r for r in range(N_HASHES, 1, -1) if (1 - threshold**r) ** (N_HASHES // r) <= 0.01)
    return next(candidates, 1)


def candidates(signatures: np.ndarray, threshold: float, roots: np.ndarray) -> Iterator[Estimated]:
    """Yields pairs of texts of different groups that may be as similar as the threshold, the closest of a band first.

    Args:
        roots: (n,) for each text one of its group, itself for the group's root; groups may grow while this goes on.
    """
    n_rows = rows_per_band(threshold)
    for start in range(0, N_HASHES - n_rows + 1, n_rows):
        order, ends = _bucketed(signatures, start, n_rows)
        few = np.arange(start + N_HASHES // 2, start + N_HASHES // 2 + _FEW) % N_HASHES
        for first in range(0, len(order), _AT_ONCE):
            part = order[first : first + _AT_ONCE + MOST]
            last = np.minimum(ends[first : first + _AT_ONCE] - first, len(part))
            least = (threshold - 2 * _SLACK) * _FEW
            for pairs in _neighbors(part, last, roots, few=signatures[part][:, few], least=least):
                yield likely(signatures, pairs, threshold)


def _bucketed(signatures: np.ndarray, start: int, n_rows: int) -> _Pairs:
    """Returns the texts that share a bucket, bucket by bucket, (m,), and where in this order each one's bucket ends."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for column in range(start, start + n_rows):
        keys = (keys + signatures[:, column] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    order = order[shared[: len(order)]]
    columns = np.arange(start + n_rows, start + n_rows + _NEXT) % N_HASHES
    later = np.ascontiguousarray(signatures[order[:, None], columns]).view(">u8").astype(np.uint64)
    order = order[np.lexsort((*later.T[::-1], keys[order]))]
    keys = keys[order]
    return order, np.searchsorted(keys, keys, side="right")


def _neighbors(
    order: np.ndarray, last: np.ndarray, roots: np.ndarray, few: np.ndarray, least: float
) -> Iterator[_Pairs]:
    """Yields pairs of neighbors in `order` that agree on `least` of a few hashes, those that stand closest first.

    Args:
        last: where the bucket ends of each text that is paired with later ones.
        few: (m, _FEW) uint8, the hashes in this order.
    """
    at, step = np.arange(len(last)), 1
    while step <= MOST:
        group = resolved(roots, order)
        found = []
        for distance in range(step, min(2 * step, MOST + 1)):
            at = at[at + distance < last[at]]
            mine = at[group[at] != group[at + distance]]
            mine = mine[_n_equal(few[mine], few[mine + distance]) >= least]
            found.append((order[mine], order[mine + distance]))
        if not len(at):
            step = MOST
        yield tuple(np.concatenate(part) for part in zip(*found, strict=True))  # type: ignore[misc]
        step *= 2


def _n_equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns on how many of their hashes, 255 at most, the rows of `a` and `b`, (p, h) uint8, agree, (p,) uint64."""
    same = (a == b).view(np.uint64).sum(axis=1)  # each of its bytes counts an eighth of them
    return (same * np.uint64(0x0101010101010101)) >> np.uint64(56)


def resolved(roots: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the root of the group of each of these texts, (m,); see `candidates`."""
    found = roots[texts]
    while not np.array_equal(above := roots[found], found):
        found = above
    return found


def likely(signatures: np.ndarray, pairs: _Pairs, threshold: float) -> Estimated:
    """Returns those of the pairs that may be as similar as the threshold, with the share of hashes they agree on."""
    found: list[Estimated] = []
    for start in range(0, max(1, len(pairs[0])), _AT_ONCE):
        left, right = (texts[start : start + _AT_ONCE] for texts in pairs)
        estimates = _n_equal(signatures[left], signatures[right]) / N_HASHES
        near = estimates >= threshold - _SLACK
        found.append((left[near], right[near], estimates[near]))
    left, right, estimates = (np.concatenate(part) for part in zip(*found, strict=True))
    return left, right, estimates
