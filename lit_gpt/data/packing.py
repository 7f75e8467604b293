"""Packing: decides which samples share a micro-batch, and which of them share a prefix that is computed once."""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lit_gpt.data.store import IGNORE, Samples

_LEAST_SHARED = 16
"""Fewest tokens of a shared prefix: a shorter one takes longer to look up than to compute again."""
_LEAST_SAVED = 0.05
"""Fraction of the tokens of the samples searched that shared prefixes must save; below it none are shared."""
_COMPARED = 1024
"""Most samples that are searched for common prefixes at once: the search is quadratic in their number."""


@dataclass(frozen=True)
class Packing:
    """How samples are packed into micro-batches."""

    max_tokens: int
    """Most tokens of a micro-batch; a longer sample gets one of its own."""
    share_up_to: int = 0
    """Longest sample, in tokens, that may share its prefix; 0 turns prefix sharing off."""


class _Prefix(NamedTuple):
    """A prefix that several samples share; none of its tokens is a target."""

    number: int
    n_tokens: int


Prefixes = Mapping[int, _Prefix]
"""Sample index -> its shared prefix, for the samples that share one."""
NONE: Prefixes = {}


LOOKED_AT = 2**12
"""Most samples of an optimizer step that are packed to learn what packing saves; those after them are alike."""


def prefixes_of(samples: Samples, indices: Sequence[int] | np.ndarray, packing: Packing) -> Prefixes:
    """Returns the shared prefixes that save the most tokens, at most one for each sample.

    Mostly they are the fixed text of a prompt style. Sorted by their tokens, samples with a common prefix are
    neighbors; where to divide that order is found by dynamic programming. Samples that share their prompt within
    themselves share nothing with others.
    """
    if samples.shares_within:
        return NONE
    lengths = samples.lengths
    heads = {int(i): head(*samples[i]) for i in indices if 1 < lengths[i] <= packing.share_up_to}
    order = sorted(heads, key=lambda i: heads[i].astype(">i4").tobytes())
    found: dict[int, _Prefix] = {}
    saved = 0
    for start in range(0, len(order), _COMPARED):
        part = order[start : start + _COMPARED]
        for first, last, n_tokens in cuts([common_length(heads[a], heads[b]) for a, b in pairwise(part)]):
            found |= dict.fromkeys(part[first:last], _Prefix(start + first, n_tokens))
            saved += (last - first - 1) * n_tokens
    return found if saved >= _LEAST_SAVED * lengths[list(heads)].sum() else NONE


def head(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the tokens of a sample that it may share: those before the one that predicts the first target."""
    targets = (np.asarray(labels[1:]) != IGNORE).nonzero()[0]
    return np.asarray(ids[: targets[0] if len(targets) else 0])


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the length of the longest common prefix of two samples."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n


def cuts(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns (start, stop, n_tokens) of each run of neighbors that best share a prefix of `n_tokens` tokens.

    Args:
        common: length of the common prefix of each sample and the next.
    """
    n = len(common) + 1
    best, came_from = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    shared = np.full(n, np.iinfo(np.int64).max)  # by the run from here to `end`
    for end in range(1, n + 1):
        shared[: end - 1] = np.minimum(shared[: end - 1], common[end - 2] if end > 1 else 0)
        counted = np.where(shared[:end] >= _LEAST_SHARED, shared[:end], 0)
        total = best[:end] + np.arange(end - 1, -1, -1) * counted
        came_from[end] = total.argmax()
        best[end] = total[came_from[end]]
    runs, end = [], n
    while end > 0:
        first = int(came_from[end])
        n_tokens = min(common[first : end - 1], default=0)
        if n_tokens >= _LEAST_SHARED:
            runs.append((first, end, n_tokens))
        end = first
    return runs


def packs(
    lengths: np.ndarray, indices: Sequence[int] | np.ndarray, max_tokens: int, prefixes: Prefixes = NONE
) -> list[list[int]]:
    """Returns the samples in groups of at most `max_tokens` computed tokens; a longer sample gets a group of its own.

    Best-fit decreasing: the longest sample first, each to the fullest group that has room for it. Where prefixes are
    shared, a sample prefers a group that has its prefix already; then an order by prefix is tried, too, and the better
    result returned.
    """
    longest = sorted(indices, key=lambda i: -lengths[i])
    orders = [longest]
    if prefixes:
        orders.append(sorted(longest, key=lambda i: prefixes.get(int(i), (-1, 0))))
    tried = [filled(lengths, order, max_tokens, prefixes) for order in orders]
    return min(tried, key=lambda groups: (len(groups), sum(n_computed(lengths, g, prefixes) for g in groups)))


def filled(lengths: np.ndarray, order: Sequence[int], max_tokens: int, prefixes: Prefixes = NONE) -> list[list[int]]:
    """Returns the samples in groups, as `packs` does, placed in the given order."""
    groups: list[list[int]] = []
    room: list[int] = []
    begun: list[list[_Prefix]] = []
    by_room: list[tuple[int, int]] = []  # (room, group) of all groups, sorted: a sample need not look at each of them
    sharing_room: dict[_Prefix, list[tuple[int, int]]] = {}  # the same of the groups that have a prefix
    for i in map(int, order):
        n, prefix = int(lengths[i]), prefixes.get(i)
        with_prefix = sharing_room.setdefault(prefix, []) if prefix else []
        shorter = n - prefix.n_tokens if prefix else n
        if (at := bisect_left(with_prefix, (shorter, -1))) < len(with_prefix):
            best, cost = with_prefix[at][1], shorter
        else:
            at, cost = bisect_left(by_room, (n, -1)), n
            best = by_room[at][1] if at < len(by_room) else len(groups)
        if best == len(groups):
            groups.append([])
            room.append(max_tokens)
            begun.append([])
            by_room.insert(bisect_left(by_room, (max_tokens, best)), (max_tokens, best))
        before, after = (room[best], best), (room[best] - cost, best)
        for places in (by_room, *(sharing_room[other] for other in begun[best])):
            del places[bisect_left(places, before)]
            insort(places, after)
        groups[best].append(i)
        room[best] -= cost
        if prefix and prefix not in begun[best]:
            begun[best].append(prefix)
            insort(with_prefix, after)
    return groups


def sharing(group: Sequence[int], prefixes: Prefixes) -> dict[_Prefix, list[int]]:
    """Returns the samples of a group that share a prefix, by prefix."""
    found: dict[_Prefix, list[int]] = {}
    for i in group:
        if i in prefixes:
            found.setdefault(prefixes[i], []).append(i)
    return {prefix: rows for prefix, rows in found.items() if len(rows) > 1}


def n_computed(lengths: np.ndarray, group: Sequence[int], prefixes: Prefixes = NONE, power: int = 1) -> int:
    """Returns the number of tokens that a forward pass over a group computes.

    Args:
        power: 2 sums the squares of the lengths instead, which attention's cost grows with.
    """
    shared = sharing(group, prefixes) if prefixes else {}
    again = sum((len(rows) - 1) * p.n_tokens**power for p, rows in shared.items())
    return int((lengths[list(group)] ** power).sum()) - again


def fullest(lengths: np.ndarray, max_tokens: int, batch_size: int) -> list[int]:
    """Returns the samples of the largest micro-batch of a step: the longest ones that fit into it together."""
    longest = (-lengths).argsort(kind="stable")
    falling = -lengths[longest]
    picked: list[int] = []
    room, at = max_tokens, 0
    while at < len(longest) and len(picked) < batch_size and (room > 0 or not picked):
        if picked and -falling[at] > room:  # on to the first one that fits, without a look at those between
            at = int(falling.searchsorted(-room))
            continue
        picked.append(int(longest[at]))
        room += int(falling[at])
        at += 1
    return picked
