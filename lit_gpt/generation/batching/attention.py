"""Attention of a pass over rows of different lengths: each row's tokens see the extent that it has in the pool.

Letters: B rows, N tokens of all rows, C n_embd, H query heads, G key/value heads, R = H / G, D head_size, T tokens of a
row, S positions that they see, P positions of the pool.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.generation.batching.batch import Batch
from lit_gpt.generation.cpu.cascade import cascade_attention
from lit_gpt.generation.cpu.stretches import stretch_end, stretch_of
from lit_gpt.layers.attention import softmax_with_sinks
from lit_gpt.layers.cpu_matmul import upcast
from lit_gpt.layers.rope import apply_rope
from lit_gpt.layers.self_attention import CausalSelfAttention, score_scale, softcap


class ExtentAttention(nn.Module):
    """An attention layer for tokens of many rows, which takes over the modules of `attn`.

    Args:
        keys, values: the layer's pool of positions, (P, G, D) each.
    """

    def __init__(
        self, attn: CausalSelfAttention, keys: Tensor, values: Tensor, window: int, beside: nn.Module | None
    ) -> None:
        super().__init__()
        self.attn, self.window, self.beside = attn, window, beside
        self.pools = keys, values
        groups = attn.config.n_query_groups
        self.sinks = None if attn.sinks is None else attn.sinks.detach().view(groups, -1, 1)  # (G, R, 1)
        self.by_head = tuple(pool.transpose(0, 1).unsqueeze(0) for pool in self.pools)  # (1, G, P, D)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: None, batch: Batch, *unused: Any) -> Tensor:
        """
        Args:
            x: (1, N, C).
            cos, sin: (N, rope_n_elem).
        """
        q, k, v = self.attn.split_heads(self.attn.qkv(x), cos, sin)  # (1, H, N, D), (1, G, N, D) each
        if self.attn.config.rotates_first:
            cos, sin = cos[..., :0], sin[..., :0]
        if batch.in_kernels:
            return self.attn.projected(self.decoded(q, k, v, cos=cos, sin=sin, batch=batch).transpose(0, 1), x)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if k.size(1):  # else the layer reads what an earlier one has written
            for pool, new in zip(self.pools, (k, v), strict=True):
                pool.index_copy_(0, batch.places, new[0].transpose(0, 1).to(pool.dtype))
        groups = self.attn.config.n_query_groups
        queries = q[0].transpose(0, 1).unflatten(1, (groups, -1)).split(batch.lengths)  # (T, G, R, D) each
        outputs: list[Tensor] = []
        for i, j, start, n, single in batch.parts:
            if not single:
                outputs += [self.attended(queries[at], at, batch) for at in range(i, j)]
            elif n and not self.window and not self.attn.config.attn_logit_softcapping and self.sinks is None:
                outputs.append(self.together(queries[i:j], batch.rows[i:j], start, n))
            else:
                outputs += self.singles(queries[i:j], batch.rows[i:j])
        y = torch.cat(outputs).flatten(1)  # (N, H * D)
        if self.beside is not None:
            y = y + self.beside(q)[0].transpose(0, 1).flatten(1)
        return self.attn.projected(y.unsqueeze(0), x)

    def decoded(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, batch: Batch) -> Tensor:
        """Returns attention (N, 1, H * D) of one token for each row, by our Triton kernels, for all rows at once.

        Args:
            q, k, v: not rotated, (1, H, N, D) and (1, G, N, D).
        """
        from lit_gpt.generation.kernels.attention import attention  # Triton comes with torch for GPUs only

        q, k, v = (x.transpose(0, 2) for x in (q, k, v))  # (N, H, 1, D), (N, G, 1, D)
        y = attention(
            q,
            k,
            v=v,
            cos=cos.contiguous(),
            sin=sin.contiguous(),
            cached=self.pools,
            position=batch.positions,
            scale=score_scale(self.attn.config),
            cap=self.attn.config.attn_logit_softcapping,
            window=self.window,
            base=batch.starts,
            position_stride=1,
        )
        if self.beside is not None:
            rotated = apply_rope(q, cos[:, None, None], sin[:, None, None])
            y = y + self.beside(rotated).transpose(1, 2).flatten(2)
        return y

    def together(self, queries: Sequence[Tensor], rows: Sequence[list[int]], shared: int, n: int) -> Tensor:
        """Returns attention (B, G, R, D) of rows that feed one token and share `n` keys, see `cascade_attention`."""
        starts, ends = [row[2] + n for row in rows], [row[2] + row[1] + 1 for row in rows]
        scale = score_scale(self.attn.config)
        q, (keys, values) = torch.cat(list(queries)), self.pools
        return cascade_attention(q, keys, values, starts, ends=ends, shared=shared, n=n, scale=scale)

    def singles(self, queries: Sequence[Tensor], rows: Sequence[list[int]]) -> Iterator[Tensor]:
        """Yields attention (n, G, R, D) of rows that feed one token, of each stretch of them.

        The heads of a group see the same keys: they are queries of one head.
        """
        q, ends = torch.cat(list(queries)), [row[2] + row[1] + 1 for row in rows]
        starts = [row[2] + (max(0, row[1] + 1 - self.window) if self.window else 0) for row in rows]
        i = 0
        while i < len(rows):
            j = stretch_end(starts, ends, i)
            k, v = (stretch_of(pool, starts, ends, first=i, stop=j).to(q.dtype) for pool in self.pools)
            yield _attend(q[i:j], k, v, config=self.attn.config, sinks=self.sinks)
            i = j

    def attended(self, q: Tensor, i: int, batch: Batch) -> Tensor:
        """Returns attention (T, G, R, D) of a piece's rotated queries, of the same shape, to its row's extent."""
        piece, config = batch.pieces[i], self.attn.config
        T, end = q.size(0), piece.position + q.size(0)
        first = max(0, piece.position + 1 - self.window) if self.window else 0
        mask = batch.masks(self.window, always=bool(config.attn_logit_softcapping) or self.sinks is not None)[i]
        if mask is not None:
            first = end - mask.size(1)
            mask = mask.to(q.dtype)
        k, v = (pool.narrow(2, piece.start + first, end - first).to(q.dtype) for pool in self.by_head)  # (1, G, S, D)
        if T == 1:  # of a tree
            return _attend(q, k, v, config=config, mask=mask, sinks=self.sinks)
        q = q.permute(1, 2, 0, 3)  # (G, R, T, D)
        k, v = (x.transpose(0, 1).expand(-1, q.size(1), -1, -1) for x in (k, v))  # (G, R, S, D)
        sinks = None if self.sinks is None else self.sinks.unsqueeze(-1)
        y = _attend(q, k, v, config=config, mask=mask, is_causal=mask is None, sinks=sinks)
        return y.permute(2, 0, 1, 3)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, config: Config,
    mask: Tensor | None = None, is_causal: bool = False, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns attention (..., T, D) of q (..., T, D) to k and v (..., S, D).

    Args:
        mask: summand of the scores, (T, S); None if every query sees every key, or all up to its own.
        is_causal: whether a query sees the keys up to its own, of as many keys as queries.
        sinks: logits beside the scores, (..., T or 1, 1).
    """
    if not config.attn_logit_softcapping and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=score_scale(config))
    dtype, (q, k, v) = q.dtype, upcast(q, k, v)
    scores = softcap(q @ k.mT * score_scale(config), config.attn_logit_softcapping).float()
    scores = scores if mask is None else scores + mask
    p = scores.softmax(-1) if sinks is None else softmax_with_sinks(scores, sinks)
    return (p.to(v.dtype) @ v).to(dtype)
