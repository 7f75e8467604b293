"""Attention by plain products within documents side by side, padded to the longest of a few.

For a GPU where its flash kernels cannot: they know no soft cap and no fp32. One document at a time would be thousands
of small kernels there; all of them in one batch, mostly padding. A CPU gives one document at a time, unpadded.

Shapes: n documents of a group, L tokens of its longest, T tokens of all; H, G, D and R as in `lit_gpt/packed.py`.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SCORES = 2**22
"""Scores of one head that exist at a time, about."""


@dataclass(frozen=True)
class Group:
    """Documents that follow each other, n of them, L tokens the longest."""

    span: slice
    """The tokens it has."""
    token: Tensor | None
    """(n, L): the token that goes to each place, a document's last one where it has ended. None: one document."""
    place: Tensor | None
    """(tokens,): the place of each of them in n * L."""

    def padded(self, x: Tensor) -> Tensor:
        """(T, heads, D) -> (n, L, heads, D)."""
        return x[self.span].unsqueeze(0) if self.token is None else x[self.token]

    def padded_by_zeros(self, x: Tensor) -> Tensor:
        """(T, heads, D) -> (n, L, heads, D)."""
        if self.token is None:
            return x[self.span].unsqueeze(0)
        places = x.new_zeros(self.token.numel(), *x.shape[1:])
        return places.index_copy_(0, self.place, x[self.span]).unflatten(0, self.token.shape)

    def cut(self, x: Tensor) -> Tensor:
        """(n, L, heads, D) -> (tokens, heads, D)."""
        return x.squeeze(0) if self.place is None else x.flatten(0, 1)[self.place]


@lru_cache(maxsize=64)
def groups(lengths: tuple[int, ...], device: torch.device) -> list[Group]:
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
        place = (torch.arange(longest) < n[:, None]).flatten().nonzero()[:, 0]
        span = slice(start, start := start + int(n.sum()))
        found.append(Group(span, *((None, None) if len(n) == 1 else (token.to(device), place.to(device)))))
        begin = end
    return found


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float, softcap: float, window: int
) -> Tensor:
    """The result (T, H, D) for q (T, H, D), k and v (T, G, D); the last three arguments as in `Heads`."""
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in groups(lengths, q.device):
        queries, keys, values = (group.padded(x) for x in (q, k, v))
        p, _ = probabilities(queries, keys, scale, softcap, window)
        out = p @ values.transpose(1, 2)  # (n, G, R * L, D)
        y[group.span] = group.cut(from_groups(out, keys.size(1)))
    return y


def attend_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lengths: tuple[int, ...], scale: float, softcap: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q (T, H, D), k and v (T, G, D), the probabilities computed anew."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for group in groups(lengths, q.device):
        d, queries, keys, values, out = group.padded_by_zeros(dy), *(group.padded(x) for x in (q, k, v, y))
        longest = keys.size(1)
        p, slope = probabilities(queries, keys, scale, softcap, window)
        d_grouped, grouped = to_groups(d, keys), to_groups(queries, keys)
        along = to_groups((d.float() * out).sum(-1, keepdim=True), keys)
        ds = (d_grouped @ values.permute(0, 2, 3, 1) - along).mul_(p).mul_(scale)
        ds = (ds if slope is None else ds.mul_(slope)).to(q.dtype)
        gradients = (
            from_groups(ds @ keys.transpose(1, 2), longest),
            (ds.mT @ grouped).transpose(1, 2),
            (p.mT @ d_grouped).transpose(1, 2),
        )
        for whole, part in zip((dq, dk, dv), gradients, strict=True):
            whole[group.span] = group.cut(part)
    return dq, dk, dv


def probabilities(q: Tensor, k: Tensor, scale: float, softcap: float, window: int) -> tuple[Tensor, Tensor | None]:
    """Of the keys (n, L, G, D) for each query (n, L, H, D), (n, G, R * L, L), and the derivative of the soft cap.

    Places where a document has ended come after all of its tokens: no query of a document sees them.
    """
    longest, slope = q.size(1), None
    hidden = minus_infinity(1 << (longest - 1).bit_length(), window, q.device)[:longest, :longest]
    scores = to_groups(q, k) @ k.permute(0, 2, 3, 1)
    if softcap:
        scores = torch.tanh(scores.float() * (scale / softcap))
        slope = 1 - scores.square()
        scale = softcap
    scores = torch.add(hidden, scores.unflatten(2, (-1, longest)), alpha=scale)  # fp32, (n, G, R, L, L)
    return scores.softmax(-1).to(q.dtype).flatten(2, 3), slope


@lru_cache(maxsize=16)  # of powers of two, so that all of them take little more than the largest
def minus_infinity(size: int, window: int, device: torch.device) -> Tensor:
    """(size, size) fp32: what hides a key from a query, 0 where it is seen."""
    at = torch.arange(size, device=device)
    distance = at[:, None] - at
    unseen = distance < 0 if not window else (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=torch.float32, device=device).masked_fill_(unseen, -torch.inf)


def to_groups(q: Tensor, k: Tensor) -> Tensor:
    """(n, L, H, D) -> (n, G, R * L, D): the queries that share a key head, one under the other."""
    return q.unflatten(2, (k.size(2), -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def from_groups(y: Tensor, longest: int) -> Tensor:
    """(n, G, R * L, D) -> (n, L, H, D)."""
    return y.unflatten(2, (-1, longest)).permute(0, 3, 1, 2, 4).flatten(2, 3)
