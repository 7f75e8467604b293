"""Keeps many texts in little memory: as UTF-8, one after the other, where a list has 60 bytes more for each."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_AT_ONCE = 4096
"""Number of texts that are decoded at once when all are gone through."""
_MOST_KNOWN = 1024
"""Number of long texts that are looked for again: system texts are few, and the same in many rows."""
_LONG = 64
"""Bytes from which on a text counts as long: the room that it takes to know it."""


class Texts(Sequence[str]):
    """A sequence of texts that grows at its end; it equals any other sequence of the same texts."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.data = bytearray()
        self.offsets, self.sizes = array("q"), array("i")
        self.known: dict[bytes, int] = {}
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds a text at the end; of a long one that is there several times, the bytes are kept once."""
        raw = text.encode("utf-8", "surrogatepass")
        at = self.known.get(raw) if len(raw) >= _LONG else None
        if at is None:
            at = len(self.data)
            self.data += raw
            if len(raw) >= _LONG and len(self.known) < _MOST_KNOWN:
                self.known[raw] = at
        self.offsets.append(at)
        self.sizes.append(len(raw))

    def take(self, indices: np.ndarray) -> "Texts":
        """Returns the texts at these indices, in this order; their bytes are shared and not copied."""
        found = Texts()
        found.data = self.data
        found.offsets = array("q", np.asarray(self.offsets)[indices].tobytes())
        found.sizes = array("i", np.asarray(self.sizes)[indices].tobytes())
        return found

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        at = self.offsets[i]
        return self.data[at : at + self.sizes[i]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


def firsts_of(texts: Iterable[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each of `n` texts the index of the first equal one, (n,) int64, and all such indices in order.

    Texts are told apart by hashes of 64 bits: of a million texts, two different ones are taken for equal with a
    probability of 3 in 100 million.
    """
    hashes = np.fromiter(map(hash, texts), dtype=np.int64, count=n)
    _, firsts, which = np.unique(hashes, return_index=True, return_inverse=True)
    return firsts[which], np.sort(firsts)


def chunks(texts: Sequence[str], most: int, least: int) -> Iterator[tuple[int, list[str]]]:
    """Yields (index of the first, texts) of neighbors with at most `most` characters together, one text at the least.

    Args:
        least: characters that a shorter text counts as.
    """
    start, room, found = 0, most, []
    for text in texts:
        size = max(least, len(text))
        if found and size > room:
            yield start, found
            start, room, found = start + len(found), most, []
        found.append(text)
        room -= size
    if found:
        yield start, found
