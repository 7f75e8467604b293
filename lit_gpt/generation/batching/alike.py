"""Finds rows that begin alike, so that a step reads the keys and values of what they share once."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from lit_gpt.generation.batching.batch import Shared
from lit_gpt.generation.batching.prefixes import common
from lit_gpt.generation.batching.rows import Row

_FEWEST = 64
"""Fewest tokens for which it pays to read them once: a row's attention in two parts takes longer than in one."""


class Alike:
    """Finds the groups of rows; those of the last step are kept while the rows are the same."""

    def __init__(self) -> None:
        self._tickets: tuple[int, ...] = ()
        self._groups: list[tuple[Row, int, list[int]]] = []

    def of(self, rows: Sequence[Row]) -> Mapping[int, Shared]:
        """Returns what rows share with others, by their ticket; rows that share nothing lack.

        Args:
            rows: they have their whole prompts in the cache.
        """
        tickets = tuple(row.ticket for row in rows)
        if tickets != self._tickets:
            self._tickets, self._groups = tickets, _groups(rows)
        return {
            ticket: Shared(first.start or 0, n)  # which moves when the pool is packed
            for first, n, members in self._groups
            for ticket in members
        }


class _Segment(NamedTuple):
    """Neighbours in the order of their prompts, and the best groups among them."""

    first: int
    end: int
    saved: int = 0
    """Number of tokens that need not be read."""
    groups: tuple[tuple[int, int, int], ...] = ()
    """(first, end, shared tokens)."""


def _groups(rows: Sequence[Row]) -> list[tuple[Row, int, list[int]]]:
    """Returns the groups: the row whose copy is read, the number of tokens, and the tickets of all its rows."""
    ordered = sorted(rows, key=lambda row: (repr(row.key), row.prompt.tobytes()))  # what begins alike is neighbours
    same = [common(a.prompt, b.prompt) if a.key == b.key else 0 for a, b in pairwise(ordered)]
    return [
        (ordered[i], n, [row.ticket for row in ordered[i:j]]) for segment in _best(same) for i, j, n in segment.groups
    ]


def _best(same: Sequence[int]) -> list[_Segment]:
    """Returns all rows in segments, with groups that save much.

    Neighbours that share most are joined first, so that whatever is joined shares what is shared at the seam.

    Args:
        same: how many tokens each row has in common with the next one.
    """
    by_first = {i: _Segment(i, i + 1) for i in range(len(same) + 1)}
    by_end = {segment.end: segment for segment in by_first.values()}
    for seam in sorted(range(len(same)), key=lambda i: -same[i]):
        n = same[seam]
        if n < _FEWEST:
            break
        left, right = by_end.pop(seam + 1), by_first.pop(seam + 1)
        saved = n * (right.end - left.first - 1)
        if saved >= left.saved + right.saved:
            joined = _Segment(left.first, right.end, saved, ((left.first, right.end, n),))
        else:
            joined = _Segment(left.first, right.end, left.saved + right.saved, left.groups + right.groups)
        by_first[joined.first] = by_end[joined.end] = joined
    return list(by_first.values())
