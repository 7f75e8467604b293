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
    """

    def __init__(self, get: Callable[[str], Tensor], names: Iterable[str]) -> None:
        self._get = get
        self._sums: dict[str, bytes | None] = dict.fromkeys(sorted(names))

    def __call__(self, name: str) -> Tensor:
        x = self._get(name)
        if self._sums.get(name, b"") is None:
            self._sums[name] = sums_of(x)
        return x

    def digest(self) -> str:
        """Returns a hash of all bytes of the tensors; those that nobody asked for are read now."""
        known = hashlib.sha256()
        for name, sums in self._sums.items():
            known.update(f"{name}\n".encode() + (sums_of(self._get(name)) if sums is None else sums))
        return known.hexdigest()[:16]


def sums_of(x: Tensor) -> bytes:
    """Returns dtype, shape and sums of all bytes of a tensor; tensors with the same ones have the same bytes."""
    content = raw(x)
    words = content[: content.size // 8 * 8].view(np.int64)  # numpy minds no odd address
    n = words.size // _BLOCK * _BLOCK
    parts = [f"{x.dtype} {tuple(x.shape)}".encode()]
    if n:
        parts.append(torch.from_numpy(words[:n]).view(-1, _BLOCK).sum(1).numpy().tobytes())
    parts += [np.add.reduce(words[n:]).tobytes(), content[words.nbytes :].tobytes()]
    return b" ".join(parts)
