"""Tells tensors apart by all of their bytes while they are read: by sums of words, which are as fast as memory.

A CRC-32 has 1 to 3 GB/s a core, and would take about as long as loading does; sums have ten times that. Each block of a
tensor has a sum of its own, so that blocks that changed places are noticed, too.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from lit_gpt.files.tensors import raw

_BLOCK = 8192
"""Number of 64-bit words in a block."""


class Summed:
    """A reader of tensors by name, which can say afterwards what all of their bytes were.

    Args:
        get: reads a tensor by its name.
        names: names of the tensors whose bytes count.
        part: number of this reader, from 0, and how many there are: each sums up its part of every tensor, unless
            `read` is told another one.
    """

    def __init__(self, get: Callable[[str], Tensor], names: Iterable[str], part: tuple[int, int] = (0, 1)) -> None:
        self._get, self._part = get, part
        self._sums: dict[str, bytes | None] = dict.fromkeys(sorted(names))

    def __call__(self, name: str) -> Tensor:
        return self.read(name, self._part)

    def read(self, name: str, part: tuple[int, int]) -> Tensor:
        """Returns a tensor, after summing up a part of it."""
        x = self._get(name)
        if self._sums.get(name, b"") is None:
            self._sums[name] = sums_of(x, part)
        return x

    def leave(self, name: str) -> None:
        """Leaves a tensor to another reader, which sums up all of it."""
        if name in self._sums:
            self._sums[name] = b""

    def digest(self, every: Callable[[list[bytes]], list[list[bytes]]] = lambda mine: [mine]) -> str:
        """Returns a hash of all bytes of the tensors; those that nobody asked for are read now.

        Args:
            every: returns what each reader has found, in their order, for what this one has.
        """
        mine = [sums_of(self._get(n), self._part) if sums is None else sums for n, sums in self._sums.items()]
        known = hashlib.sha256()
        for name, *sums in zip(self._sums, *every(mine), strict=True):
            known.update(f"{name}\n".encode() + b"".join(sums))
        return known.hexdigest()[:16]


def sums_of(x: Tensor, part: tuple[int, int] = (0, 1)) -> bytes:
    """Returns dtype, shape and sums of all bytes of a tensor; tensors with the same ones have the same bytes.

    Args:
        part: (i, n) returns, and reads, the i-th of n parts, counted from 0; the parts together are the whole.
    """
    (i, of), content = part, raw(x)
    words = content[: content.size // 8 * 8].view(np.int64)  # numpy minds no odd address
    n = words.size // _BLOCK
    found = f"{x.dtype} {tuple(x.shape)} ".encode() if i == 0 else b""
    start, stop = n * i // of * _BLOCK, n * (i + 1) // of * _BLOCK
    if stop > start:
        found += torch.from_numpy(words[start:stop]).view(-1, _BLOCK).sum(1).numpy().tobytes()
    if i == of - 1:
        found += b" " if n else b""
        found += np.add.reduce(words[n * _BLOCK :]).tobytes() + b" " + content[words.nbytes :].tobytes()
    return found
