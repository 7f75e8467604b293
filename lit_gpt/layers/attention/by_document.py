"""Packed attention on a CPU, one document at a time, by the fused kernel or by matmuls, whichever is faster."""

import torch
from torch import Tensor

from lit_gpt.layers.attention import padded
from lit_gpt.layers.attention.documents import Documents
from lit_gpt.layers.attention.heads import Heads

_aten = torch.ops.aten


def by_document(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Returns the output of attention (T, H, D), and the logsumexp of each piece that the fused kernel computed."""
    y, kept = torch.empty(q.shape, dtype=q.dtype), []
    for span, prefix in documents.pieces():
        here = q[span], _seen(k, span, prefix), _seen(v, span, prefix)
        if sinks is None and _cpu_flash_can(q.dtype, here[1].size(0), heads):
            y[span], lse = _cpu_flash(*here, heads=heads)
            kept.append(lse)
        else:
            y[span] = padded.by_matmul(*(x[None] for x in here), heads=heads, sinks=sinks)[0]
    return y, *kept


def by_document_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor,
    kept: tuple[Tensor, ...], documents: Documents, heads: Heads, sinks: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns the gradients of q (T, H, D), k and v (T, G, D), and of the sinks, (H,), if there are any.

    Args:
        kept: what `by_document` returned after the output.
    """
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    n = sum(documents.lengths[: len(documents.n_sharing)])
    prefix_sums = [torch.zeros(n, *x.shape[1:], dtype=torch.float32) for x in (k, v)]  # fp32: sums over many documents
    lse = iter(kept)
    d_sinks = [] if sinks is None else [torch.zeros_like(sinks)]
    for span, prefix in documents.pieces():
        here = dy[span], q[span], _seen(k, span, prefix), _seen(v, span, prefix), y[span]
        if sinks is None and _cpu_flash_can(q.dtype, here[2].size(0), heads):
            dq[span], *others = _cpu_flash_backward(*here, lse=next(lse), heads=heads)
        else:
            found = padded.by_matmul_backward(*(x[None] for x in here), heads=heads, sinks=sinks)
            dq[span], *others = (g[0] for g in found[:3])
            for sum_, part in zip(d_sinks, found[3:], strict=True):
                sum_ += part
        for whole, sums, part in zip((dk, dv), prefix_sums, others, strict=True):
            if span.stop <= n:
                sums[span] += part
                continue
            if prefix is not None:
                at = prefix.stop - prefix.start
                sums[prefix] += part[:at]
                part = part[at:]
            whole[span] = part
    dk[:n], dv[:n] = prefix_sums
    return dq, dk, dv, *d_sinks


def _seen(x: Tensor, span: slice, prefix: slice | None) -> Tensor:
    """Returns the rows of x (T, G, D) that a piece attends to: its prefix, if any, and itself, (S, G, D)."""
    return x[span] if prefix is None else torch.cat((x[prefix], x[span]))


def _cpu_flash_can(dtype: torch.dtype, n: int, heads: Heads) -> bool:
    """Returns whether the fused kernel supports a document of n tokens and is faster than matmuls for it."""
    return not heads.softcap and (not heads.window or n <= heads.window) and (dtype == torch.float32 or n > 256)


def _cpu_flash(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Returns the output (L, H, D) and the logsumexp of the last L tokens of a document of S."""
    args = (x.transpose(0, 1)[None] for x in (q, *_repeated(k, v, q)))
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*args, 0.0, **_causal(q, k), scale=heads.scale)
    return out[0].transpose(0, 1), lse


def _cpu_flash_backward(
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
    if q.size(0) == k.size(0):
        return {"is_causal": True, "attn_mask": None}
    mask = padded.unseen(q.size(0), k.size(0), 0, q.device).to(q.dtype)
    return {"is_causal": False, "attn_mask": mask}


def _repeated(k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns k and v with their heads repeated to as many as q has."""
    times = q.size(1) // k.size(1)
    return (k, v) if times == 1 else (k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))
