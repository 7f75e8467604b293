"""Tells tensors apart by all of their bytes while they are read: by sums of words, which are as fast as memory.

A CRC-32 has 1 to 3 GB/s a core, and would take about as long as loading does; sums have ten times that. Each block of a
tensor has a sum of its own, so that blocks that changed places are noticed, too.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.files.tensors import Spec, raw, spec_of

_BLOCK = 8192
"""Number of 64-bit words in a block."""
_NO_BLOCKS = torch.zeros(0, dtype=torch.int64)


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
        self._sums: dict[str, _Sums | None] = dict.fromkeys(sorted(names))
        self._left: set[str] = set()

    def __call__(self, name: str) -> Tensor:
        return self.read(name, self._part)

    def read(self, name: str, part: tuple[int, int]) -> Tensor:
        """Returns a tensor, after summing up a part of it."""
        x = self._get(name)
        if name in self._sums and self._sums[name] is None:
            self._sums[name] = _summed(x, part)
        return x

    def leave(self, name: str) -> None:
        """Leaves a tensor to another reader, which sums up all of it."""
        self._left.add(name)

    def digest(self, every: Callable[[list[bytes]], list[list[bytes]]] = lambda mine: [mine]) -> str:
        """Returns a hash of all bytes of the tensors; those that nobody asked for are read now.

        Args:
            every: returns what each reader has found, in their order, for what this one has.
        """
        read = [name for name in self._sums if name not in self._left]
        found = _as_bytes([self._sums[name] or _summed(self._get(name), self._part) for name in read])
        known_here = dict(zip(read, found, strict=True))
        mine = [known_here.get(name, b"") for name in self._sums]
        known = hashlib.sha256()
        for name, *sums in zip(self._sums, *every(mine), strict=True):
            known.update(f"{name}\n".encode() + b"".join(sums))
        return known.hexdigest()[:16]


class _Sums(NamedTuple):
    """What was found of a part of a tensor. To make bytes of it takes as long as the sums of a small tensor do."""

    x: Spec | None
    """The tensor's dtype and shape, if this part is the first one."""
    blocks: Tensor
    """The sums of its blocks, (n,) int64."""
    last: Tensor | None = None
    """The sum of the words after the tensor's last block, () int64; None if there are none."""
    rest: bytes | None = None
    """The bytes after the last word; None if another part has them."""
    has_blocks: bool = False
    """Whether the tensor has blocks, if this part is the last one."""


def _summed(x: Tensor, part: tuple[int, int]) -> _Sums:
    """Returns dtype, shape and sums of all bytes of a tensor; tensors with the same ones have the same bytes.

    Args:
        part: (i, n) returns, and reads, the i-th of n parts, counted from 0; the parts together are the whole.
    """
    (i, of), (words, rest) = part, _words(x)
    n = len(words) // _BLOCK
    start, stop = n * i // of * _BLOCK, n * (i + 1) // of * _BLOCK
    blocks = words[start:stop].view(-1, _BLOCK).sum(1) if stop > start else _NO_BLOCKS
    spec = spec_of(x) if i == 0 else None
    if i < of - 1:
        return _Sums(spec, blocks)
    last = words[n * _BLOCK :].sum() if n * _BLOCK < len(words) else None
    return _Sums(spec, blocks, last, rest, has_blocks=n > 0)


def _words(x: Tensor) -> tuple[Tensor, bytes]:
    """Returns the bytes of a tensor as words, (n,) int64, which share its memory if they can, and what is left over."""
    if x.is_cpu and x.is_contiguous() and x.nbytes % 8 == 0 and x.storage_offset() * x.itemsize % 8 == 0:
        return x.detach().view(-1).view(torch.int64), b""
    content = raw(x)
    n_bytes = content.size // 8 * 8
    return torch.from_numpy(content[:n_bytes].view(np.int64)), content[n_bytes:].tobytes()  # numpy minds no odd address


def _as_bytes(found: Sequence[_Sums]) -> list[bytes]:
    """Returns the sums of parts of tensors as bytes, those of each part by themselves."""
    values = [x for sums in found for x in (sums.blocks, *([] if sums.last is None else [sums.last.view(1)]))]
    numbers, at, texts = torch.cat([_NO_BLOCKS, *values]).numpy().tobytes(), 0, []
    for sums in found:
        middle = at + 8 * len(sums.blocks)
        text = f"{sums.x.dtype} {sums.x.shape} ".encode() if sums.x else b""
        text += numbers[at:middle]
        at = middle
        if sums.rest is not None:
            last = b"" if sums.last is None else numbers[at : at + 8]
            text += b" " * sums.has_blocks + (last or bytes(8)) + b" " + sums.rest
            at += len(last)
        texts.append(text)
    return texts
