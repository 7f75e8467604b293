"""Attention within documents side by side, padded to the longest of a few: for a GPU where its flash kernels cannot.

They know no soft cap and no fp32. One document at a time would be thousands of small kernels; all of them in one
batch, mostly padding.

Shapes: n documents of a group, L tokens of its longest, T tokens of all; H, G, D and R as in `lit_gpt/packed.py`.
"""

from functools import lru_cache

import torch
from torch import Tensor

SCORES = 2**22
"""Scores of one head that exist at a time, about."""


@lru_cache(maxsize=8)
def groups(lengths: tuple[int, ...], device: torch.device) -> list[tuple[slice, Tensor, Tensor]]:
    """Documents that follow each other, in groups of like length.

    Returns:
        For each group the tokens it spans; for each place in it, (n, L), the token that goes there, the document's last
        one where it has ended; and for each token its place, (tokens,), in n * L.
    """
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
        stop = start + int(n.sum())
        found.append((slice(start, stop), token.to(device), place.to(device)))
        begin, start = end, stop
    return found


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float, softcap: float, window: int
) -> Tensor:
    """The result (T, H, D) for q (T, H, D), k and v (T, G, D); the last three arguments as in `Heads`."""
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for span, token, place in groups(lengths, q.device):
        p, _ = probabilities(q[token], k[token], scale, softcap, window)
        out = p @ v[token].transpose(1, 2)  # (n, G, R * L, D)
        y[span] = from_groups(out, token.size(1)).flatten(0, 1)[place]
    return y


def attend_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lengths: tuple[int, ...], scale: float, softcap: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q (T, H, D), k and v (T, G, D), the probabilities computed anew."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for span, token, place in groups(lengths, q.device):
        n, longest = token.shape
        d = dy.new_zeros(n * longest, *dy.shape[1:]).index_copy_(0, place, dy[span]).unflatten(0, (n, longest))
        queries, keys, values = q[token], k[token], v[token]
        p, slope = probabilities(queries, keys, scale, softcap, window)
        d_grouped, grouped = to_groups(d, keys), to_groups(queries, keys)
        along = (d_grouped.float() * to_groups(y[token], keys).float()).sum(-1, keepdim=True)
        ds = ((d_grouped @ values.permute(0, 2, 3, 1)).float() - along) * p * scale
        ds = (ds if slope is None else ds * slope).to(q.dtype)
        gradients = (
            from_groups(ds @ keys.transpose(1, 2), longest),
            (ds.mT @ grouped).transpose(1, 2),
            (p.mT @ d_grouped).transpose(1, 2),
        )
        for whole, part in zip((dq, dk, dv), gradients, strict=True):
            whole[span] = part.flatten(0, 1)[place]
    return dq, dk, dv


def probabilities(q: Tensor, k: Tensor, scale: float, softcap: float, window: int) -> tuple[Tensor, Tensor | None]:
    """Of the keys (n, L, G, D) for each query (n, L, H, D), (n, G, R * L, L), and the derivative of the soft cap.

    Places where a document has ended come after all of its tokens: no query of a document sees them.
    """
    longest = q.size(1)
    scores = (to_groups(q, k) @ k.permute(0, 2, 3, 1)).float() * scale
    slope = None
    if softcap:
        scores = torch.tanh(scores / softcap)
        slope = 1 - scores.square()
        scores = scores * softcap
    at = torch.arange(longest, device=q.device)
    distance = at[:, None] - at
    hidden = distance < 0 if not window else (distance < 0) | (distance >= window)
    scores.unflatten(2, (-1, longest)).masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1).to(q.dtype), slope


def to_groups(q: Tensor, k: Tensor) -> Tensor:
    """(n, L, H, D) -> (n, G, R * L, D): the queries that share a key head, one under the other."""
    return q.unflatten(2, (k.size(2), -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def from_groups(y: Tensor, longest: int) -> Tensor:
    """(n, G, R * L, D) -> (n, L, H, D)."""
    return y.unflatten(2, (-1, longest)).permute(0, 3, 1, 2, 4).flatten(2, 3)
