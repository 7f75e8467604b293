"""Packed attention by matmuls, on groups of documents of similar length that are padded to the longest of the group.

This serves a GPU whose flash kernels cannot be used, as they support neither a soft cap nor fp32. One document at a
time would launch thousands of small kernels there; all documents in one batch would be mostly padding. On a CPU, the
functions `by_matmul` and `by_matmul_backward` are called with one document at a time, without padding.

Shapes as in this package; n documents of a group, L tokens of its longest.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lit_gpt.layers.attention.heads import Heads, from_groups, to_groups
from lit_gpt.layers.attention.sinks import softmax_with_sinks

SCORES = 2**22
"""Approximate number of scores of one head that are in memory at once."""


@dataclass(frozen=True)
class _Group:
    """A group of n consecutive documents, the longest of L tokens."""

    span: slice
    """The slice of the row that the group spans."""
    token: Tensor | None
    """Index of the token in each slot, (n, L), the document's last one in padding; None for a single document."""
    slot: Tensor | None
    """Index in the n * L slots of each token of the group, (tokens,); None for a single document."""

    def padded(self, x: Tensor) -> Tensor:
        """Returns the group's rows of x (T, heads, D) as (n, L, heads, D), padded by each document's last row."""
        return x[self.span].unsqueeze(0) if self.token is None else x[self.token]

    def padded_by_zeros(self, x: Tensor) -> Tensor:
        """Returns the group's rows of x (T, heads, D) as (n, L, heads, D), padded by zeros."""
        if self.token is None or self.slot is None:
            return x[self.span].unsqueeze(0)
        slots = x.new_zeros(self.token.numel(), *x.shape[1:])
        return slots.index_copy_(0, self.slot, x[self.span]).unflatten(0, self.token.shape)

    def unpadded(self, x: Tensor) -> Tensor:
        """Returns x (n, L, heads, D) without padding, (tokens, heads, D)."""
        return x.squeeze(0) if self.slot is None else x.flatten(0, 1)[self.slot]


@lru_cache(maxsize=64)
def groups(lengths: tuple[int, ...], device: torch.device) -> list[_Group]:
    """Splits the documents into groups of consecutive ones of similar length."""
    found, begin, start = [], 0, 0
    while begin < len(lengths):
        end, longest, shortest = begin, 0, lengths[begin]
        while end < len(lengths):
            high, low = max(longest, lengths[end]), min(shortest, lengths[end])
            if end > begin and (high > 2 * low or (end + 1 - begin) * high * high > SCORES):
                break
            end, longest, shortest = end + 1, high, low
        n = torch.tensor(lengths[begin:end])
        offsets = start + n.cumsum(0) - n
        token = offsets[:, None] + torch.minimum(torch.arange(longest), n[:, None] - 1)
        slot = (torch.arange(longest) < n[:, None]).flatten().nonzero()[:, 0]
        span = slice(start, start := start + int(n.sum()))
        found.append(_Group(span, *((None, None) if len(n) == 1 else (token.to(device), slot.to(device)))))
        begin = end
    return found


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], heads: Heads, sinks: Tensor | None = None
) -> Tensor:
    """Returns the output of attention (T, H, D) of q (T, H, D), k and v (T, G, D)."""
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in groups(lengths, q.device):
        y[group.span] = group.unpadded(by_matmul(*(group.padded(x) for x in (q, k, v)), heads=heads, sinks=sinks))
    return y


def attend_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor,
    lengths: tuple[int, ...], heads: Heads, sinks: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns the gradients of q (T, H, D), k and v (T, G, D), and of the sinks, (H,), if there are any.

    The probabilities are recomputed.
    """
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    d_sinks = [] if sinks is None else [torch.zeros_like(sinks)]
    for group in groups(lengths, q.device):
        given = group.padded_by_zeros(dy), *(group.padded(x) for x in (q, k, v, y))
        found = by_matmul_backward(*given, heads=heads, sinks=sinks)
        for whole, part in zip((dq, dk, dv), found[:3], strict=True):
            whole[group.span] = group.unpadded(part)
        for sum_, part in zip(d_sinks, found[3:], strict=True):
            sum_ += part
    return dq, dk, dv, *d_sinks


def by_matmul(q: Tensor, k: Tensor, v: Tensor, heads: Heads, sinks: Tensor | None = None) -> Tensor:
    """Returns attention (n, L, H, D) of the last L tokens of each document, q (n, L, H, D), to k and v (n, S, G, D)."""
    p, _ = _probabilities(q, k, heads, sinks)
    return from_groups(p @ v.transpose(1, 2), q)  # (n, G, R * L, D) -> (n, L, H, D)


def by_matmul_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, heads: Heads, sinks: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Returns the gradients of q (n, L, H, D), k and v (n, S, G, D), and of the sinks, (H,), if there are any.

    The probabilities are recomputed.
    """
    p, slope = _probabilities(q, k, heads, sinks)
    d_grouped, grouped = to_groups(dy, k), to_groups(q, k)
    along = to_groups((dy.float() * y).sum(-1, keepdim=True), k)
    d_sinks = []
    if sinks is not None:
        left = along * (1 - p.float().sum(-1, keepdim=True))  # (n, G, R * L, 1)
        d_sinks.append(-left.unflatten(2, (-1, q.size(1))).sum((0, 3, 4)).flatten().to(sinks.dtype))
    ds = (d_grouped @ v.permute(0, 2, 3, 1) - along).mul_(p).mul_(heads.scale)
    ds = (ds if slope is None else ds.mul_(slope)).to(q.dtype)
    dq = from_groups(ds @ k.transpose(1, 2), q)
    return dq, (ds.mT @ grouped).transpose(1, 2), (p.mT @ d_grouped).transpose(1, 2), *d_sinks


def _probabilities(q: Tensor, k: Tensor, heads: Heads, sinks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Returns the attention probabilities (n, G, R * L, S), and the derivative of the soft cap, None without one.

    Padding comes after the tokens of a document, and needs no mask of its own: no query of the document sees it.
    """
    scale, slope = heads.scale, None
    scores = to_groups(q, k) @ k.permute(0, 2, 3, 1)
    if heads.softcap:
        scores = torch.tanh(scores.float() * (scale / heads.softcap))
        slope = 1 - scores.square()
        scale = heads.softcap
    hidden = unseen(q.size(1), k.size(1), heads.window, q.device)
    scores = torch.add(hidden, scores.unflatten(2, (-1, q.size(1))), alpha=scale)  # fp32, (n, G, R, L, S)
    p = scores.softmax(-1) if sinks is None else softmax_with_sinks(scores, sinks.view(1, k.size(2), -1, 1, 1))
    return p.to(q.dtype).flatten(2, 3), slope


def unseen(n_queries: int, n_keys: int, window: int, device: torch.device) -> Tensor:
    """Returns the mask (L, S) in fp32 of the last L of S tokens: 0 where a query sees a key, else minus infinity."""
    return minus_infinity(1 << (n_keys - 1).bit_length(), window, device)[n_keys - n_queries : n_keys, :n_keys]


@lru_cache(maxsize=16)  # sizes are powers of two: all masks together take little more memory than the largest
def minus_infinity(size: int, window: int, device: torch.device) -> Tensor:
    """Returns the causal mask (size, size) in fp32: 0 where a query sees a key, else minus infinity."""
    at = torch.arange(size, device=device)
    distance = at[:, None] - at
    unseen = distance < 0 if not window else (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=torch.float32, device=device).masked_fill_(unseen, -torch.inf)
