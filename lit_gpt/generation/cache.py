"""A KV cache whose tensors never move, of which a step reads the first positions only.

Letters: B rows, G key/value heads, D head_size, T tokens of a call, S positions that are read.
"""

import torch
from torch import Tensor

from lit_gpt.model import GPT, KVCache

_SMALLEST_ROOM = 256
"""Positions; reading fewer is not worth a graph of their own."""


def room(n: int) -> int:
    """How many positions to read so that the first `n` are among them: few sizes, none much more than needed.

    They are multiples of 256, and from 1,024 on at least four to every doubling.
    """
    step = max(_SMALLEST_ROOM, 1 << max(0, n.bit_length() - 3))
    return -(-n // step) * step


class StaticCache:
    """What `lit_gpt.model.KVCache` is, for rows that grow to at most `length` positions.

    Positions come first in memory: the first S of them are one piece and look the same whatever `length` is, so that
    code that was compiled for one text serves all.
    """

    def __init__(self, model: GPT, batch_size: int, length: int) -> None:
        c = model.config
        like = model.transformer.wte.weight
        shape = (room(length), batch_size, c.n_query_groups, c.head_size)
        self.length = length
        self.k, self.v = ([like.new_zeros(shape) for _ in range(c.n_layer)] for _ in range(2))
        self.positions = torch.arange(shape[0], device=like.device)
        self.rows = torch.arange(batch_size, device=like.device)

    def first(self, n: int) -> "CacheSlice":
        """The first `n` positions, to read and to write."""
        return CacheSlice(self, n)


class CacheSlice(KVCache):
    """The first `n` positions of a cache, in the place of a `KVCache`; `length` stays that of the whole text."""

    def __init__(self, cache: StaticCache, n: int) -> None:
        self.length = cache.length
        self.positions = cache.positions[:n]
        self.layers = [
            LayerSlice(k[:n], v[:n], self.positions, cache.rows) for k, v in zip(cache.k, cache.v, strict=True)
        ]

    def any_size(self) -> "CacheSlice":
        """The same, marked for `torch.compile`: what it makes must serve any number of positions."""
        for layer in self.layers:
            for x in (layer.k, layer.v, layer.positions):
                torch._dynamo.maybe_mark_dynamic(x, 0)
        return self


class LayerSlice:
    """Keys and values of one layer, (S, B, G, D) each."""

    def __init__(self, k: Tensor, v: Tensor, positions: Tensor, rows: Tensor) -> None:
        self.k, self.v, self.positions, self.rows = k, v, positions, rows

    def update(self, k: Tensor, v: Tensor, input_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v, (B, G, T, D), at `input_pos`, (T,) or (B, T); returns all of the slice, (B, G, S, D) each."""
        for cached, new in ((self.k, k), (self.v, v)):
            if input_pos.dim() == 1:
                cached[input_pos] = new.permute(2, 0, 1, 3).to(cached.dtype)
            else:
                cached[input_pos, self.rows[:, None]] = new.transpose(1, 2).to(cached.dtype)
        return self.k.permute(1, 2, 0, 3).to(k.dtype), self.v.permute(1, 2, 0, 3).to(v.dtype)
