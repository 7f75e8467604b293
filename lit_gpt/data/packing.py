"""Which samples share a forward pass, and which of those begin alike, so that their prefix is computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lit_gpt.data.store import IGNORE, Samples

_LEAST_SHARED = 16
"""Tokens of a prefix, so that looking it up takes less than computing it."""
_LEAST_SAVED = 0.05
"""Part of the tokens of a step that shared prefixes save, or else none are shared."""
_COMPARED = 1024
"""Samples among which prefixes are searched for: more of them are searched in parts."""


@dataclass(frozen=True)
class Packing:
    """How samples are put together."""

    max_tokens: int
    """That a forward pass computes; a longer sample goes alone."""
    share_up_to: int = 0
    """Samples of up to so many tokens may share their prefixes; 0 shares none."""


class _Prefix(NamedTuple):
    """Tokens that several samples begin with, all of them without loss."""

    number: int
    n_tokens: int


Prefixes = Mapping[int, _Prefix]
"""By sample, for those that share theirs."""
NONE: Prefixes = {}


def prefixes_of(samples: Samples, chosen: Sequence[int] | np.ndarray, packing: Packing) -> Prefixes:
    """The prefixes that save the most tokens, each sample having one at most: those of a prompt style, mostly.

    In alphabetical order, samples that begin alike are neighbours; where to cut that order is found by dynamic
    programming.
    """
    lengths = samples.lengths
    heads = {int(i): _head(*samples[i]) for i in chosen if 1 < lengths[i] <= packing.share_up_to}
    order = sorted(heads, key=lambda i: heads[i].astype(">i4").tobytes())
    found: dict[int, _Prefix] = {}
    saved = 0
    for start in range(0, len(order), _COMPARED):
        part = order[start : start + _COMPARED]
        for first, last, n_tokens in cuts([_alike(heads[a], heads[b]) for a, b in pairwise(part)]):
            found |= dict.fromkeys(part[first:last], _Prefix(start + first, n_tokens))
            saved += (last - first - 1) * n_tokens
    return found if saved >= _LEAST_SAVED * lengths[list(heads)].sum() else NONE


def _head(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The tokens before the one that predicts the first target, or but the last one."""
    targets = (np.asarray(labels[1:]) != IGNORE).nonzero()[0]
    return np.asarray(ids[: targets[0] if len(targets) else len(ids) - 1])


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).nonzero()[0]
    return int(different[0]) if len(different) else n


def cuts(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of neighbours that share a prefix: the first one, the one behind the last, and the shared tokens.

    Args:
        common: tokens that each has in common with the next.
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
    lengths: np.ndarray, chosen: Sequence[int] | np.ndarray, max_tokens: int, prefixes: Prefixes = NONE
) -> list[list[int]]:
    """The chosen samples in groups of at most `max_tokens` tokens to compute; a longer one goes alone.

    Each goes to the fullest group that has room for it, the longest first; where prefixes are shared, to a group
    with its own, and that order is tried against one of samples that begin alike.
    """
    longest = sorted(chosen, key=lambda i: -lengths[i])
    orders = [longest]
    if prefixes:
        orders.append(sorted(longest, key=lambda i: prefixes.get(int(i), (-1, 0))))
    tried = [filled(lengths, order, max_tokens, prefixes) for order in orders]
    return min(tried, key=lambda groups: (len(groups), sum(n_computed(lengths, g, prefixes) for g in groups)))


def filled(lengths: np.ndarray, order: Sequence[int], max_tokens: int, prefixes: Prefixes = NONE) -> list[list[int]]:
    """`packs`, in this order."""
    groups: list[list[int]] = []
    room: list[int] = []
    begun: list[set[_Prefix]] = []
    for i in map(int, order):
        n, prefix = int(lengths[i]), prefixes.get(i)
        costs = [n - prefix.n_tokens if prefix in begun[g] else n for g in range(len(groups))]
        fitting = [g for g, cost in enumerate(costs) if room[g] >= cost]
        if not fitting:
            groups.append([])
            room.append(max_tokens)
            begun.append(set())
            costs.append(n)
            fitting = [len(groups) - 1]
        best = min(fitting, key=lambda g: (costs[g], room[g]))
        groups[best].append(i)
        room[best] -= costs[best]
        if prefix:
            begun[best].add(prefix)
    return groups


def sharing(group: Sequence[int], prefixes: Prefixes) -> dict[_Prefix, list[int]]:
    """The samples of a group that share a prefix, by prefix."""
    found: dict[_Prefix, list[int]] = {}
    for i in group:
        if i in prefixes:
            found.setdefault(prefixes[i], []).append(i)
    return {prefix: rows for prefix, rows in found.items() if len(rows) > 1}


def n_computed(lengths: np.ndarray, group: Sequence[int], prefixes: Prefixes = NONE, power: int = 1) -> int:
    """Tokens that a forward pass over a group computes.

    Args:
        power: 2 sums the squares of the lengths, as attention goes by them.
    """
    shared = sharing(group, prefixes) if prefixes else {}
    again = sum((len(rows) - 1) * p.n_tokens**power for p, rows in shared.items())
    return int((lengths[list(group)] ** power).sum()) - again


def fullest(lengths: np.ndarray, max_tokens: int, batch_size: int) -> list[int]:
    """Samples whose micro-batch is as large as they come: the longest, and as many more as a step has and fit in."""
    chosen: list[int] = []
    room = max_tokens
    for i in (-lengths).argsort(kind="stable"):
        if not chosen or lengths[i] <= room:
            chosen.append(int(i))
            room -= int(lengths[i])
        if room <= 0 or len(chosen) == batch_size:
            break
    return chosen
