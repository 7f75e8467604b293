"""A KV cache whose tensors never move; a step reads its first positions only.

Letters: B rows, G key/value heads, D head_size, T tokens of a call, S positions that are read.
"""

from typing import Any

import torch
from torch import Tensor

from lit_gpt.model import GPT, KVCache

_SMALLEST_ROOM = 256
"""Fewest positions that a step reads: fewer are not worth a graph of their own."""


def room(n: int) -> int:
    """Returns how many positions to read so as to include the first `n`: one of few sizes, not much above `n`.

    Sizes are multiples of 256, and from 1,024 on at least four to every doubling.
    """
    step = max(_SMALLEST_ROOM, 1 << max(0, n.bit_length() - 3))
    return -(-n // step) * step


class StaticCache:
    """A KV cache like `lit_gpt.model.KVCache`, for rows that grow to at most `length` positions.

    Positions are the first dimension: the first S of them are contiguous and have the same strides whatever `length`
    is, so that code compiled for one text serves all.
    """

    def __init__(self, model: GPT, batch_size: int, length: int) -> None:
        c = model.config
        like = model.transformer.wte.weight
        self.length, n = length, room(length)
        sizes = [c.cached(i) for i in range(c.n_layer)]
        self.k, self.v = ([like.new_zeros(n, batch_size, *of_layer[j]) for of_layer in sizes] for j in range(2))
        self.states: list[dict[str, Any]] = [{} for _ in sizes]
        """What layers that are not attention keep besides."""
        self.positions = torch.arange(n, device=like.device)
        self.rows = torch.arange(batch_size, device=like.device)

    def first(self, n: int) -> "CacheSlice":
        """Returns the first `n` positions, to read and to write."""
        return CacheSlice(self, n)


class CacheSlice(KVCache):
    """The first `n` positions of a cache, used as a `KVCache`; `length` is that of the whole text."""

    def __init__(self, cache: StaticCache, n: int) -> None:
        self.length = cache.length
        self.positions = cache.positions[:n]
        self.layers = [
            LayerSlice(k[:n], v[:n], self.positions, rows=cache.rows, states=states)
            for k, v, states in zip(cache.k, cache.v, cache.states, strict=True)
        ]

    def any_size(self) -> "CacheSlice":
        """Marks the number of positions as dynamic for `torch.compile`; returns the slice."""
        for layer in self.layers:
            for x in (layer.k, layer.v, layer.positions):
                torch._dynamo.maybe_mark_dynamic(x, 0)
        return self


class LayerSlice:
    """Keys and values of one layer, (S, B, G, D) each."""

    def __init__(self, k: Tensor, v: Tensor, positions: Tensor, rows: Tensor, states: dict[str, Any]) -> None:
        self.k, self.v, self.positions, self.rows, self.states = k, v, positions, rows, states

    def update(self, k: Tensor, v: Tensor, input_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v, (B, G, T, D), at `input_pos`, (T,) or (B, T); returns all of the slice, (B, G, S, D) each."""
        for cached, new in ((self.k, k), (self.v, v)):
            if input_pos.dim() == 1:
                cached[input_pos] = new.permute(2, 0, 1, 3).to(cached.dtype)
            else:
                cached[input_pos, self.rows[:, None]] = new.transpose(1, 2).to(cached.dtype)
        return self.k.permute(1, 2, 0, 3).to(k.dtype), self.v.permute(1, 2, 0, 3).to(v.dtype)
