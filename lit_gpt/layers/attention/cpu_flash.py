"""Packed attention of one long document on a CPU by torch's fused kernel, which keeps no scores in memory.

Shapes as in this package; the queries are the last L of S tokens.
"""

import torch
from torch import Tensor

from lit_gpt.layers.attention.heads import Heads

_aten = torch.ops.aten
_LONG = {torch.float32: 160}
"""Number of tokens from which on the kernel is faster than matmuls, by dtype."""
_LONG_IN_16_BITS = 1024


def longest_by_matmul(x: Tensor, heads: Heads, sinks: Tensor | None) -> float:
    """Returns the number of tokens of the longest document for which the kernel is not faster or is of no use."""
    if x.device.type != "cpu" or heads.softcap or sinks is not None:
        return float("inf")
    return _LONG.get(x.dtype, _LONG_IN_16_BITS)


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Returns the output (L, H, D) of q (L, H, D), k and v (S, G, D), and the logsumexp of the scores."""
    args = (x.transpose(0, 1)[None] for x in (q, *_repeated(k, v, q)))
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*args, 0.0, **_causal(q, k), scale=heads.scale)
    return out[0].transpose(0, 1), lse


def cpu_flash_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, heads: Heads
) -> tuple[Tensor, ...]:
    """Returns the gradients of q (L, H, D), k and v (S, G, D)."""
    groups = k.size(1)
    args = (x.transpose(0, 1)[None] for x in (dy, q, *_repeated(k, v, q), y))
    gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *args, lse, 0.0, **_causal(q, k), scale=heads.scale
    )
    dq, dk, dv = (g[0].transpose(0, 1) for g in gradients)  # (L or S, H, D)
    if groups < q.size(1):
        dk, dv = (g.unflatten(1, (groups, -1)).sum(2) for g in (dk, dv))
    return dq, dk, dv


def _causal(q: Tensor, k: Tensor) -> dict[str, bool | Tensor | None]:
    """Returns the kernel's arguments for causal attention of the last L of S tokens.

    If L < S it takes a mask, since the kernel's own causal mask assumes that queries and keys start at the same token.
    """
    L, S = q.size(0), k.size(0)
    if L == S:
        return {"is_causal": True, "attn_mask": None}
    mask = torch.full((L, S), -torch.inf, dtype=q.dtype).triu_(S - L + 1)
    return {"is_causal": False, "attn_mask": mask}


def _repeated(k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns k and v with their heads repeated to as many as q has."""
    times = q.size(1) // k.size(1)
    return (k, v) if times == 1 else (k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))
