"""Which texts are nearly the same apart from what many share: fixed instructions do not make two texts alike."""

import re
from collections.abc import Sequence

import numpy as np

from lit_gpt.data.prepare.similar import groups, normalize

MOST_ALIKE = 20
"""Different texts that a group may have before what they share is taken for a template with texts put into it."""
_WINDOW = 16
"""Characters of the runs that are counted."""
_COMMON = 0.2
"""A run that this part of the texts has is shared."""
_MOST_COUNTED = 1 << 20
"""Characters whose runs are counted, of texts that are spread over the group."""
_LONGEST_WORD = 16
_DEPTH = 4
"""Templates within templates."""


def groups_apart(texts: Sequence[str], threshold: float = 0.8, most: int = MOST_ALIKE) -> np.ndarray:
    """(n,) int64: as `groups`, but the texts of a large group are compared by what they do not share, again and again.

    Args:
        threshold: as for `groups`.
        most: a group of more different texts, or of more than half of all texts, is a large one.
    """
    return _apart([normalize(text) for text in texts], threshold, most, _DEPTH)


def _apart(texts: Sequence[str], threshold: float, most: int, depth: int) -> np.ndarray:
    """(n,) int64: for each text the first one of its group; a text that comes again is not counted again."""
    firsts: dict[str, int] = {}
    first = np.array([firsts.setdefault(text, i) for i, text in enumerate(texts)], dtype=np.int64)
    unlike = np.array(list(firsts.values()), dtype=np.int64)
    own = own_parts(list(firsts), MOST_ALIKE)  # what so many share would also make them costly to compare
    labels = groups(own, threshold)
    for members in large(labels, most) if depth else []:
        alike = [own[i] for i in members]
        if (apart := own_parts(alike)) != alike:
            labels[members] = members[_apart(apart, threshold, most, depth - 1)]
    group_of = np.arange(len(texts))
    group_of[unlike] = unlike[labels]
    return group_of[first]


def large(labels: np.ndarray, most: int) -> list[np.ndarray]:
    """The members of each group of three or more that has more than `most`, or more than half of all."""
    sizes = np.unique(labels, return_counts=True)[1]
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(sizes)
    found = (sizes > 2) & ((sizes > most) | (2 * sizes > len(labels)))
    return [order[ends[i] - sizes[i] : ends[i]] for i in found.nonzero()[0]]


def own_parts(texts: Sequence[str], least: int = 3) -> list[str]:
    """What each of the texts has to itself, without the runs of characters that many of them have.

    Punctuation at the seams goes too, so that what is left of two texts that differ in a full stop is the same. Time
    and memory grow with the length of the texts.

    Args:
        least: different texts that have to have a run.
    """
    shared = _shared_runs(texts, least)
    return [_without(text, shared) for text in texts] if len(shared) else list(texts)


def _shared_runs(texts: Sequence[str], least: int) -> np.ndarray:
    """(s,) uint64, sorted: the runs that many of the texts have."""
    unlike = list(dict.fromkeys(texts))
    if len(unlike) < least:
        return np.zeros(0, dtype=np.uint64)
    step = min(-(-sum(map(len, unlike)) // _MOST_COUNTED), len(unlike) // (2 * least)) or 1
    counted = unlike[::step]
    runs = [np.unique(_runs(text)) for text in counted]
    values, counts = np.unique(np.concatenate(runs), return_counts=True)
    return values[counts >= max(least, _COMMON * len(counted))]


def _without(text: str, shared: np.ndarray) -> str:
    """The text without the shared runs; what was around one stands apart."""
    runs = _runs(text)
    locations = np.searchsorted(shared, runs)
    found = shared[np.minimum(locations, len(shared) - 1)] == runs
    if not found.any():
        return text
    edges = np.zeros(len(text) + 1, dtype=np.int64)
    starts = found.nonzero()[0]
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + _WINDOW, -1)
    kept = np.cumsum(edges[:-1]) == 0
    turns = np.diff(np.concatenate([[0], kept.astype(np.int8), [0]])).nonzero()[0]
    pieces = [
        _stripped(_whole_words(text, a, b)) for a, b in zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True)
    ]
    return " ".join(filter(None, pieces))


def _whole_words(text: str, start: int, stop: int) -> str:
    """The piece from `start` to `stop` with the rest of the words that it begins and ends with: one in five texts may
    share their first letter, too.
    """
    first, last = start, stop
    while first > 0 and start - first < _LONGEST_WORD and _in_a_word(text[first - 1 : first + 1]):
        first -= 1
    while last < len(text) and last - stop < _LONGEST_WORD and _in_a_word(text[last - 1 : last + 1]):
        last += 1
    return text[first:last]


def _in_a_word(two: str) -> bool:
    """Whether two characters are of one word, in scripts that have spaces between words."""
    return two.isalnum() and max(two) < "\u2e80"


def _stripped(part: str) -> str:
    """A piece without spaces and punctuation around it, unless there is nothing else."""
    return re.sub(r"^\W+|\W+$", "", part) or part.strip()


def _runs(text: str) -> np.ndarray:
    """(n,) uint64: hashes of the runs of `_WINDOW` characters that begin at each place; none of a shorter text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    n = max(0, len(codes) - _WINDOW + 1)
    hashes = np.zeros(n, dtype=np.uint64)
    for k in range(_WINDOW):
        hashes = (hashes + codes[k : k + n] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return hashes
