"""Rotary embedding and causal attention of packed documents, by the fastest implementation for the device."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.layers.attention.by_matmul import attend, attend_backward
from lit_gpt.layers.attention.documents import Documents
from lit_gpt.layers.attention.flash import flash, flash_backward, flash_can
from lit_gpt.layers.attention.heads import Heads, split
from lit_gpt.layers.attention.sinks import sinks_gradient, with_sinks
from lit_gpt.layers.compiled import compiled_on_gpu
from lit_gpt.layers.cpu_matmul import upcast


class PackedAttention(Function):
    """The autograd function of rotary embedding and causal attention; it saves the rotated qkv and the output.

    Args:
        qkv: (T, sum(sizes)), as `attn.qkv` stacks it.
        cos, sin: (T, n) for n rotated channels of a head.
        sinks: logits beside the scores, (H,); None without any.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # qkv has the dtype that autocast chose: no more casts
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None = None
    ) -> Tensor:
        """Returns the output of attention, (T, H * D)."""
        qkv = rotated(qkv, cos, sin, heads.head_size, sum(heads.sizes[:2]) // heads.head_size)
        y, *kept = attended(qkv, documents, heads, sinks)
        ctx.documents, ctx.heads = documents, heads
        ctx.save_for_backward(qkv, cos, sin, sinks, y, *kept)
        return y.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, sinks, y, *kept = ctx.saved_tensors
        dq, dk, dv, *d_sinks = attended_backward(
            dy.view_as(y), qkv, y, *kept, documents=ctx.documents, heads=ctx.heads, sinks=sinks
        )
        # a rotation's transpose is the rotation by the opposite angle
        return rotated_back(dq, dk, dv, cos, sin), None, None, None, None, *(d_sinks or (None,))


def attended(qkv: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None = None) -> tuple[Tensor, ...]:
    """Returns attention (T, H, D) for rotated qkv (T, sum(sizes)), and what else `attended_backward` needs."""
    if flash_can(qkv, heads):
        q, k, v = split(qkv, heads)
        y, lse, *kept = flash(q, k, v, documents=documents, heads=heads)
        if sinks is not None:
            y, all_logits = with_sinks(y, lse.mT, sinks)
            lse = all_logits.mT.contiguous()
        return y, lse, *kept
    y, *kept = attend(*upcast(qkv), documents=documents, heads=heads, sinks=sinks)
    return y.to(qkv.dtype), *kept


def attended_backward(
    dy: Tensor, qkv: Tensor, y: Tensor, *kept: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Returns the gradients of rotated q (T, H, D), k and v (T, G, D), and of the sinks, (H,), if there are any.

    Args:
        dy, y: the gradient of the output of attention and the output itself, (T, H, D).
        kept: what `attended` returned after the output.
    """
    if flash_can(qkv, heads):
        q, k, v = split(qkv, heads)
        gradients = flash_backward(dy, q, k, v, y, *kept, documents=documents, heads=heads)
        return gradients if sinks is None else (*gradients, sinks_gradient(dy, y, kept[0].mT, sinks))
    dq, dk, dv, *d_sinks = attend_backward(*upcast(dy, qkv, y), *kept, documents=documents, heads=heads, sinks=sinks)
    return *(x.to(qkv.dtype) for x in (dq, dk, dv)), *d_sinks


@partial(compiled_on_gpu, dynamic=1)
def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, head_size: int, n_heads: int) -> Tensor:
    """Returns qkv (T, sum(sizes)) with the first n channels of the first `n_heads` heads rotated; cos, sin: (T, n)."""
    x = qkv.unflatten(-1, (-1, head_size))
    return torch.cat((_rotate_heads(x[:, :n_heads], cos, sin), x[:, n_heads:]), 1).flatten(1)


@partial(compiled_on_gpu, dynamic=1)
def rotated_back(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns the gradient of qkv, (T, sum(sizes)), given those of rotated q and k and of v, (T, heads, D) each."""
    return torch.cat((_rotate_heads(dq, cos, sin, -1), _rotate_heads(dk, cos, sin, -1), dv), 1).flatten(1)


def _rotate_heads(x: Tensor, cos: Tensor, sin: Tensor, sign: int = 1) -> Tensor:
    """Returns x (T, heads, D) with the first n channels of each head rotated, or rotated back with a `sign` of -1.

    Args:
        cos, sin: (T, n).
    """
    half = cos.size(-1) // 2
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    rotating = x[..., : 2 * half].float()  # one conversion, where products of mixed dtypes would be four
    a, b = rotating.split((half, half), -1)
    first, second = torch.addcmul(a * cos, b, sin, value=-sign), torch.addcmul(b * cos, a, sin, value=sign)
    return torch.cat((first.to(x.dtype), second.to(x.dtype), x[..., 2 * half :]), -1)
