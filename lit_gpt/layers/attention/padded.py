"""Attention by plain products within documents side by side, padded to the longest of a few.

For a GPU where its flash kernels cannot: they know no soft cap and no fp32. One document at a time would be thousands
of small kernels there; all of them in one batch, mostly padding. A CPU gives one document at a time, unpadded.

Shapes as in this package; n documents of a group, L tokens of its longest.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lit_gpt.layers.attention.heads import Heads, from_groups, to_groups

SCORES = 2**22
"""Scores of one head that exist at a time, about."""


@dataclass(frozen=True)
class _Group:
    """Documents that follow each other, n of them, L tokens the longest."""

    span: slice
    """The tokens it has."""
    token: Tensor | None
    """(n, L): the token that goes to each slot, a document's last one where it has ended. None: one document."""
    slot: Tensor | None
    """(tokens,): the slot of each of them in n * L."""

    def padded(self, x: Tensor) -> Tensor:
        """(T, heads, D) -> (n, L, heads, D)."""
        return x[self.span].unsqueeze(0) if self.token is None else x[self.token]

    def padded_by_zeros(self, x: Tensor) -> Tensor:
        """(T, heads, D) -> (n, L, heads, D)."""
        if self.token is None or self.slot is None:
            return x[self.span].unsqueeze(0)
        slots = x.new_zeros(self.token.numel(), *x.shape[1:])
        return slots.index_copy_(0, self.slot, x[self.span]).unflatten(0, self.token.shape)

    def cut(self, x: Tensor) -> Tensor:
        """(n, L, heads, D) -> (tokens, heads, D)."""
        return x.squeeze(0) if self.slot is None else x.flatten(0, 1)[self.slot]


@lru_cache(maxsize=64)
def groups(lengths: tuple[int, ...], device: torch.device) -> list[_Group]:
    """Documents in groups of like length."""
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


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], heads: Heads) -> Tensor:
    """The result (T, H, D) for q (T, H, D), k and v (T, G, D)."""
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in groups(lengths, q.device):
        y[group.span] = group.cut(by_matmul(*(group.padded(x) for x in (q, k, v)), heads=heads))
    return y


def attend_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lengths: tuple[int, ...], heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (T, H, D), k and v (T, G, D), the probabilities computed anew."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for group in groups(lengths, q.device):
        given = group.padded_by_zeros(dy), *(group.padded(x) for x in (q, k, v, y))
        for whole, part in zip((dq, dk, dv), by_matmul_backward(*given, heads=heads), strict=True):
            whole[group.span] = group.cut(part)
    return dq, dk, dv


def by_matmul(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> Tensor:
    """Attention of q (n, L, H, D), the last L tokens of each document, to k and v (n, S, G, D): (n, L, H, D)."""
    p, _ = _probabilities(q, k, heads)
    return from_groups(p @ v.transpose(1, 2), q)  # (n, G, R * L, D) -> (n, L, H, D)


def by_matmul_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (n, L, H, D), k and v (n, S, G, D), the probabilities computed anew."""
    p, slope = _probabilities(q, k, heads)
    d_grouped, grouped = to_groups(dy, k), to_groups(q, k)
    along = to_groups((dy.float() * y).sum(-1, keepdim=True), k)
    ds = (d_grouped @ v.permute(0, 2, 3, 1) - along).mul_(p).mul_(heads.scale)
    ds = (ds if slope is None else ds.mul_(slope)).to(q.dtype)
    dq = from_groups(ds @ k.transpose(1, 2), q)
    return dq, (ds.mT @ grouped).transpose(1, 2), (p.mT @ d_grouped).transpose(1, 2)


def _probabilities(q: Tensor, k: Tensor, heads: Heads) -> tuple[Tensor, Tensor | None]:
    """Of the keys (n, S, G, D) for each query (n, L, H, D), (n, G, R * L, S), and the derivative of the soft cap.

    Places where a document has ended come after all of its tokens: no query of a document sees them.
    """
    scale, slope = heads.scale, None
    scores = to_groups(q, k) @ k.permute(0, 2, 3, 1)
    if heads.softcap:
        scores = torch.tanh(scores.float() * (scale / heads.softcap))
        slope = 1 - scores.square()
        scale = heads.softcap
    hidden = unseen(q.size(1), k.size(1), heads.window, q.device)
    scores = torch.add(hidden, scores.unflatten(2, (-1, q.size(1))), alpha=scale)  # fp32, (n, G, R, L, S)
    return scores.softmax(-1).to(q.dtype).flatten(2, 3), slope


def unseen(n_queries: int, n_keys: int, window: int, device: torch.device) -> Tensor:
    """(L, S) fp32, minus infinity where one of the last L tokens does not see one of S: what comes later than it."""
    return minus_infinity(1 << (n_keys - 1).bit_length(), window, device)[n_keys - n_queries : n_keys, :n_keys]


@lru_cache(maxsize=16)  # of powers of two, so that all of them take little more than the largest
def minus_infinity(size: int, window: int, device: torch.device) -> Tensor:
    """(size, size) fp32: what hides a key from a query, 0 where it is seen."""
    at = torch.arange(size, device=device)
    distance = at[:, None] - at
    unseen = distance < 0 if not window else (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=torch.float32, device=device).masked_fill_(unseen, -torch.inf)
