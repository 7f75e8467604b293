"""Groups near-duplicate texts by what they do not share with many others, so that templates do not make duplicates."""

import re
from collections.abc import Sequence

import numpy as np

from lit_gpt.data.prepare.similar import groups, normalized
from lit_gpt.data.prepare.texts import Texts, chunks, firsts_of

MOST_ALIKE = 20
"""Most different texts of a group; of a larger one, what they share is taken for a template that was filled in."""
_WINDOW = 16
"""Length in characters of the runs that are counted."""
_COMMON = 0.2
"""Fraction of the texts from which on a run counts as shared."""
_MOST_COUNTED = 1 << 20
"""Most characters whose runs are counted; of more, texts spread over the group are sampled."""
_AT_ONCE = 1 << 18
"""Most characters from which shared runs are taken at once."""
_LONGEST_WORD = 16
"""Most characters by which a remaining part is extended to whole words."""
_DEPTH = 4
"""Most times that shared text is taken off: templates may stand within templates."""


def groups_apart(texts: Sequence[str], threshold: float = 0.8, most: int = MOST_ALIKE) -> np.ndarray:
    """Returns groups as `groups` does, (n,) int64, but compares the texts of a large group by what they do not share.

    Args:
        threshold: least Jaccard similarity of two near-duplicates; see `groups`.
        most: a group is large if it has more different texts than this, or more than half of all texts.
    """
    return _apart(normalized(texts), threshold, most, _DEPTH)


def _apart(texts: Texts, threshold: float, most: int, depth: int) -> np.ndarray:
    """Returns for each text the index of the first one of its group, (n,) int64; equal texts count once."""
    first, different = firsts_of(texts, len(texts))
    own = own_parts(texts.take(different), MOST_ALIKE)  # shared text would make all pairs candidates, and so costly
    labels = groups(own, threshold)
    for members in large(labels, most) if depth else []:
        texts_of_group = own.take(members)
        if (parts := own_parts(texts_of_group)) != texts_of_group:
            labels[members] = members[_apart(parts, threshold, most, depth - 1)]
    group_of = np.arange(len(texts))
    group_of[different] = different[labels]
    return group_of[first]


def large(labels: np.ndarray, most: int) -> list[np.ndarray]:
    """Returns the members of each group of three or more that has more than `most`, or more than half of all."""
    sizes = np.unique(labels, return_counts=True)[1]
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(sizes)
    found = (sizes > 2) & ((sizes > most) | (2 * sizes > len(labels)))
    return [order[ends[i] - sizes[i] : ends[i]] for i in found.nonzero()[0]]


def own_parts(texts: Sequence[str], least: int = 3) -> Texts:
    """Returns each text without the runs of characters that many of the texts share.

    Punctuation where a run was taken out goes too, so that what is left of two texts that differ in a full stop is
    equal. Time and memory are linear in the length of the texts. Where nothing is shared, `Texts` are returned as the
    same object.

    Args:
        least: fewest different texts that must have a run for it to count as shared.
    """
    given = texts if isinstance(texts, Texts) else Texts(texts)
    shared = _shared_runs(given, least)
    if not len(shared):
        return given
    return Texts(part for _, some in chunks(given, _AT_ONCE, least=1) for part in _without(some, shared))


def _shared_runs(texts: Texts, least: int) -> np.ndarray:
    """Returns the sorted hashes of the runs that many of the texts have, (s,) uint64."""
    _, which = firsts_of(texts, len(texts))
    if len(which) < least:
        return np.zeros(0, dtype=np.uint64)
    different = texts.take(which)
    step = min(-(-sum(map(len, different)) // _MOST_COUNTED), len(different) // (2 * least)) or 1
    counted = different.take(np.arange(0, len(different), step))
    runs = [_different_runs(some) for _, some in chunks(counted, _AT_ONCE, least=1)]
    values, counts = np.unique(np.concatenate(runs), return_counts=True)
    return values[counts >= max(least, _COMMON * len(counted))]


def _different_runs(texts: Sequence[str]) -> np.ndarray:
    """Returns the hashes of the different runs of each text, one text after the other, (r,) uint64."""
    runs, positions, ends = _runs(texts)
    owners = np.searchsorted(ends, positions, side="right").astype(np.uint64)
    _, firsts = np.unique((runs ^ owners) * np.uint64(0xBF58476D1CE4E5B9) + owners, return_index=True)
    return runs[firsts]


def _without(texts: Sequence[str], shared: np.ndarray) -> list[str]:
    """Returns the texts without the shared runs; the parts that remain of each are separated by spaces."""
    runs, positions, ends = _runs(texts)
    locations = np.minimum(np.searchsorted(shared, runs), len(shared) - 1)
    found = positions[shared[locations] == runs]
    edges = np.zeros(ends[-1] + 1, dtype=np.int64)
    np.add.at(edges, found, 1)
    np.add.at(edges, found + _WINDOW, -1)
    kept = np.cumsum(edges[:-1]) == 0
    result = list(texts)
    for i in np.unique(np.searchsorted(ends, found, side="right")).tolist():
        own = np.concatenate([[0], kept[ends[i] - len(texts[i]) : ends[i]].astype(np.int8), [0]])
        bounds = np.diff(own).nonzero()[0].tolist()
        text = texts[int(i)]
        parts = [_stripped(_whole_words(text, a, b)) for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
        result[i] = " ".join(filter(None, parts))
    return result


def _whole_words(text: str, start: int, stop: int) -> str:
    """Returns the part from `start` to `stop`, extended to whole words at both ends.

    Else a word would lose its first letter wherever one in five texts has the same letter there.
    """
    first, last = start, stop
    while first > 0 and start - first < _LONGEST_WORD and _in_a_word(text[first - 1 : first + 1]):
        first -= 1
    while last < len(text) and last - stop < _LONGEST_WORD and _in_a_word(text[last - 1 : last + 1]):
        last += 1
    return text[first:last]


def _in_a_word(two: str) -> bool:
    """Returns whether two characters belong to one word, in scripts with spaces between words."""
    return two.isalnum() and max(two) < "\u2e80"


def _stripped(part: str) -> str:
    """Returns a part without the spaces and punctuation around it, unless it has nothing else."""
    return re.sub(r"^\W+|\W+$", "", part) or part.strip()


def _runs(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the hash of each run of `_WINDOW` characters within a text, (r,) uint64, with where it begins, (r,).

    Positions count through all texts, one text after the other; the third array, (n,), is where each text ends.
    """
    ends = np.cumsum([len(text) for text in texts])
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    n = max(0, len(codes) - _WINDOW + 1)
    hashes = np.zeros(n, dtype=np.uint64)
    for k in range(_WINDOW):
        hashes = (hashes + codes[k : k + n] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    positions = np.arange(n)
    positions = positions[positions + _WINDOW <= ends[np.searchsorted(ends, positions, side="right")]]
    return hashes[positions], positions, ends
