"""The KV cache: one pool of positions for each layer, of which rows and kept prefixes own contiguous extents.

Letters: T positions of the pool, G key/value heads, D head_size.
"""

import copy
from bisect import insort
from collections.abc import Sequence

import torch

from lit_gpt.model import GPT
from lit_gpt.resources import total_memory

_SHARE = {"cpu": 0.4, "cuda": 0.8}
"""Share of the machine's memory, or of what is free on the GPU, that the KV cache takes at most."""
Span = tuple[int, int]
"""Positions of the pool: (the first, their number)."""


class Pool:
    """Keys and values of `size` positions, (T, G, D) each for every layer, and the list of those that nobody owns."""

    def __init__(self, model: GPT, size: int, dtype: torch.dtype) -> None:
        self.size = size
        self.k, self.v = _layers(model, size, dtype)
        self.clear()

    def clear(self) -> None:
        """Frees all positions."""
        self.holes: list[Span] = [(0, self.size)]
        """Free positions in order; no two of them touch."""
        self.n_free = self.size

    def beside(self, model: GPT) -> "Pool":
        """Adds layers for another model at the same positions; returns a pool of these layers alone."""
        twin = copy.copy(self)
        twin.k, twin.v = _layers(model, self.size, self.k[0].dtype)
        self.k, self.v = [*self.k, *twin.k], [*self.v, *twin.v]
        return twin

    def take(self, n: int) -> int | None:
        """Returns the start of `n` free positions, which are owned from now on; None if there is no such hole."""
        for i, (start, length) in enumerate(self.holes):
            if length >= n:
                self.holes[i : i + 1] = [(start + n, length - n)] if length > n else []
                self.n_free -= n
                return start
        return None

    def give(self, start: int, n: int) -> None:
        """Frees `n` positions from `start` on."""
        if n == 0:
            return
        self.n_free += n
        insort(self.holes, (start, n))
        i = self.holes.index((start, n))
        first, last = max(0, i - 1), min(len(self.holes), i + 2)
        joined: list[Span] = []
        for begin, length in self.holes[first:last]:
            if joined and joined[-1][0] + joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((begin, length))
        self.holes[first:last] = joined

    def copy(self, spans: Sequence[Span], to: int) -> None:
        """Copies keys and values of `spans`, one after the other, to the positions from `to` on."""
        for x in (*self.k, *self.v):
            at = to
            for start, n in spans:
                x[at : at + n] = x[start : start + n]
                at += n

    def pack(self, spans: Sequence[Span], n_owned: int) -> None:
        """Moves `spans` to the front, one after the other; all from `n_owned` on is free then.

        Args:
            spans: they may overlap, and together have at most `n_owned` positions.
        """
        device = self.k[0].device
        source = torch.cat([torch.arange(start, start + n, device=device) for start, n in spans] or [torch.empty(0)])
        for x in (*self.k, *self.v):
            x[: len(source)] = x[source.long()]
        self.holes = [(n_owned, self.size - n_owned)] if n_owned < self.size else []
        self.n_free = self.size - n_owned


def _layers(model: GPT, size: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Returns room for the keys and for the values of a model's layers."""
    c, device = model.config, model.transformer.wte.weight.device
    sizes = [c.cached(i) for i in range(c.n_layer)]
    keys, values = ([_room(size, *s[j], dtype=dtype, device=device) for s in sizes] for j in range(2))
    return keys, values


def _room(size: int, heads: int, n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns room for `size` positions, (T, G, D), which in a CPU's memory are next to each other for each head.

    Attention goes over them one head after the other, and takes a fifth less time then.
    """
    if device.type == "cpu":
        return torch.empty(heads, size, n, dtype=dtype).transpose(0, 1)
    return torch.empty(size, heads, n, dtype=dtype, device=device)


def fitting(model: GPT, max_rows: int, dtype: torch.dtype) -> int:
    """Returns how many positions the KV cache can have: what fits into memory, up to full contexts for all rows."""
    c, device = model.config, model.transformer.wte.weight.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else total_memory()
    position = sum(heads * n for i in range(c.n_layer) for heads, n in c.cached(i)) * dtype.itemsize
    return max(1, min(max_rows * c.block_size, int(free * _SHARE.get(device.type, 0.4)) // position))


def dtype_of(model: GPT) -> torch.dtype:
    """Returns the dtype of keys and values: that of the weights, or the one that autocast chooses where it is on."""
    weight = model.transformer.wte.weight
    on = torch.is_autocast_enabled(weight.device.type)
    return torch.get_autocast_dtype(weight.device.type) if on else weight.dtype
