"""Attention of rows that begin alike, one token each: what they share is read once for all of them.

The scores of the shared keys and those of a row's own keys are normalized apart and put together by the logarithms of
their sums, which is exact but for rounding (https://arxiv.org/abs/2402.05099, section 3.1).

Letters: n rows, G key/value heads, R query heads of each, D head_size, P positions of the pool.
"""

import torch
from torch import Tensor

from lit_gpt.generation.cpu.stretches import stretch_end, stretch_of


def cascade_attention(
    q: Tensor, keys: Tensor, values: Tensor, starts: list[int], ends: list[int], shared: int, n: int, scale: float
) -> Tensor:
    """Returns the means of values, (n, G, R, D), weighted by attention; TorchScript compiles it, too.

    Args:
        q: rotated, (n, G, R, D).
        keys, values: the layer's pool, (P, G, D) each, on a CPU.
        starts, ends: for each row, where in the pool its own keys begin, which come after the shared ones, and end.
        shared: where in the pool the keys begin that all rows share.
        n: their number.
    """
    B, G, R, D = q.size(0), q.size(1), q.size(2), q.size(3)
    together = q.permute(1, 0, 2, 3).reshape(1, G, B * R, D)
    k = keys[shared : shared + n].transpose(0, 1).unsqueeze(0)
    v = values[shared : shared + n].transpose(0, 1).unsqueeze(0)
    y, sums = _attended(together, k, v, scale)
    y, sums = y.view(G, B, R, D).transpose(0, 1), sums.view(G, B, R).transpose(0, 1)
    own_y: list[Tensor] = []
    own_sums: list[Tensor] = []
    i = 0
    while i < B:
        j = stretch_end(starts, ends, i)
        k, v = stretch_of(keys, starts, ends, first=i, stop=j), stretch_of(values, starts, ends, first=i, stop=j)
        mine, its_sums = _attended(q[i:j], k, v, scale)
        own_y.append(mine)
        own_sums.append(its_sums)
        i = j
    share = torch.sigmoid(sums - torch.cat(own_sums)).unsqueeze(-1)  # of the weights that is on shared keys
    return torch.lerp(torch.cat(own_y), y, share.to(y.dtype))


def _attended(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the weighted means of v, like q, and the logarithms of the sums of weights, (n, G, T).

    Args:
        q: (n, G, T, D).
        k, v: (n, G, S, D); every query sees all.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k.to(q.dtype), v.to(q.dtype), scale=scale)
