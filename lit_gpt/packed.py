"""Attention among the tokens of each document, where documents lie end to end without padding.

Shapes: T tokens of all documents, H query heads, G key/value heads, D head size, R = H / G, L tokens of one document.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from lit_gpt import padded
from lit_gpt.fused import fused

aten = torch.ops.aten


@dataclass(frozen=True)
class Documents:
    """Where documents begin and end in a row of T tokens."""

    lengths: tuple[int, ...]
    offsets: Tensor
    """(n + 1,) int32: document i spans offsets[i] .. offsets[i + 1]."""
    positions: Tensor
    """(T,) int64, of each token in its document."""

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> "Documents":
        n = torch.tensor(lengths)
        offsets = torch.nn.functional.pad(n.cumsum(0), (1, 0))
        positions = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(n)
        return cls(lengths, offsets.int(), positions)

    def to(self, device: torch.device) -> "Documents":
        move = {"device": device, "non_blocking": True}
        return Documents(self.lengths, self.offsets.to(**move), self.positions.to(**move))


@dataclass(frozen=True)
class Heads:
    """How attention reads a row of queries, keys and values."""

    sizes: tuple[int, int, int]
    """Channels of q, k and v."""
    head_size: int
    scale: float
    """Of the scores."""
    softcap: float = 0.0
    """Scores s become c * tanh(s / c); 0 leaves them."""
    window: int = 0
    """Keys a query sees, itself included; 0 means all before it."""


class PackedAttention(Function):
    """Rotary embedding and causal attention of each document; keeps the rotated qkv and the result.

    Args:
        qkv: (T, sum(sizes)), as `attn.qkv` stacks it.
        cos, sin: (T, n), n the rotated channels of a head.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, heads: Heads) -> Tensor:
        """(T, H * D)."""
        qkv = rotated(qkv, cos, sin, heads.head_size, sum(heads.sizes[:2]) // heads.head_size)
        y, *kept = attended(qkv, documents, heads)
        ctx.documents, ctx.heads = documents, heads
        ctx.save_for_backward(qkv, cos, sin, y, *kept)
        return y.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, y, *kept = ctx.saved_tensors
        d_qkv = attended_backward(dy.view_as(y), qkv, y, *kept, documents=ctx.documents, heads=ctx.heads)
        # a rotation's transpose is the rotation by the opposite angle
        return rotated_back(*d_qkv, cos, sin), None, None, None, None


def attended(qkv: Tensor, documents: Documents, heads: Heads) -> tuple[Tensor, ...]:
    """The result (T, H, D) for rotated qkv (T, sum(sizes)), and what `attended_backward` needs besides."""
    q, k, v = split(qkv, heads)
    if flash_can(qkv, heads):
        return flash(q, k, v, documents, heads)
    if qkv.device.type == "cpu":
        return by_document(q, k, v, documents, heads)
    return (padded.attend(q, k, v, documents.lengths, heads.scale, heads.softcap, heads.window),)


def attended_backward(
    dy: Tensor, qkv: Tensor, y: Tensor, *kept: Tensor, documents: Documents, heads: Heads
) -> tuple[Tensor, ...]:
    """Gradients of rotated q (T, H, D), k and v (T, G, D). `kept` is what `attended` returned after its result."""
    q, k, v = split(qkv, heads)
    if flash_can(qkv, heads):
        return flash_backward(dy, q, k, v, y, *kept, documents, heads)
    if qkv.device.type == "cpu":
        return by_document_backward(dy, q, k, v, y, kept, documents, heads)
    return padded.attend_backward(dy, q, k, v, y, documents.lengths, heads.scale, heads.softcap, heads.window)


def split(qkv: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """(T, sum(sizes)) -> q (T, H, D), k and v (T, G, D), views."""
    return tuple(x.unflatten(-1, (-1, heads.head_size)) for x in qkv.split(heads.sizes, dim=-1))


@partial(fused, dynamic=1)
def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, head_size: int, n_heads: int) -> Tensor:
    """qkv with the first channels of its first `n_heads` heads turned, as many as cos has."""
    x = qkv.unflatten(-1, (-1, head_size))
    return torch.cat((turned(x[:, :n_heads], cos, sin), x[:, n_heads:]), 1).flatten(1)


@partial(fused, dynamic=1)
def rotated_back(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of qkv, (T, sum(sizes)), from those of the turned q and k and of v, (T, heads, D) each."""
    return torch.cat((turned(dq, cos, -sin), turned(dk, cos, -sin), dv), 1).flatten(1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, D) with the first channels of each head turned."""
    half = cos.size(-1) // 2
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    a, b, rest = x.split((half, half, x.size(-1) - 2 * half), dim=-1)
    return torch.cat(((a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest), -1)


def flash_can(qkv: Tensor, heads: Heads) -> bool:
    """Whether torch's flash attention on a GPU does this."""
    return qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16) and not heads.softcap and (
        heads.head_size % 8 == 0 and heads.head_size <= 256 and torch.cuda.get_device_capability()[0] >= 8
    )  # fmt: skip


def flash(q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads) -> tuple[Tensor, ...]:
    """The result (T, H, D), and what `flash_backward` needs besides: the scores' logsumexp and a random state."""
    o, longest = documents.offsets, max(documents.lengths)
    window = {"window_size_left": heads.window - 1, "window_size_right": 0} if heads.window else {}
    y, lse, state, unused, _ = aten._flash_attention_forward(
        q, k, v, o, o, longest, longest, 0.0, True, False, scale=heads.scale, **window
    )
    return y, lse, state, unused


def flash_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, state: Tensor, unused: Tensor,
    documents: Documents, heads: Heads,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q (T, H, D), k and v (T, G, D)."""
    o, longest = documents.offsets, max(documents.lengths)
    window = {"window_size_left": heads.window - 1, "window_size_right": 0} if heads.window else {}
    return aten._flash_attention_backward(
        dy, q, k, v, y, lse, o, o, longest, longest, 0.0, True, state, unused, scale=heads.scale, **window
    )


def by_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads) -> tuple[Tensor, ...]:
    """The result (T, H, D), and the logsumexp of each document that a CPU's fused attention did."""
    y, kept = torch.empty(q.shape, dtype=q.dtype), []
    for span, n in spans(documents):
        here = q[span], k[span], v[span]
        if cpu_flash_can(q.dtype, n, heads):
            y[span], lse = cpu_flash(*here, heads)
            kept.append(lse)
        else:
            y[span] = padded.attend(*here, (n,), heads.scale, heads.softcap, heads.window)
    return y, *kept


def by_document_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, kept: tuple[Tensor, ...], documents: Documents, heads: Heads
) -> tuple[Tensor, ...]:
    """Gradients of q (T, H, D), k and v (T, G, D). `kept` is what `by_document` returned after its result."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    lse = iter(kept)
    for span, n in spans(documents):
        here = dy[span], q[span], k[span], v[span], y[span]
        if cpu_flash_can(q.dtype, n, heads):
            dq[span], dk[span], dv[span] = cpu_flash_backward(*here, next(lse), heads)
        else:
            settings = (n,), heads.scale, heads.softcap, heads.window
            dq[span], dk[span], dv[span] = padded.attend_backward(*here, *settings)
    return dq, dk, dv


def spans(documents: Documents) -> Iterator[tuple[slice, int]]:
    """The tokens of each document, and how many they are."""
    start = 0
    for n in documents.lengths:
        yield slice(start, start + n), n
        start += n


def cpu_flash_can(dtype: torch.dtype, n: int, heads: Heads) -> bool:
    """Whether a CPU's fused attention does a document of n tokens, and pays: in 16 bits not for short ones."""
    return not heads.softcap and (not heads.window or n <= heads.window) and (dtype == torch.float32 or n > 256)


def cpu_flash(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Of one document, the result (L, H, D) and its logsumexp."""
    args = (x.transpose(0, 1)[None] for x in (q, *repeated(k, v, q)))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*args, 0.0, True, scale=heads.scale)
    return out[0].transpose(0, 1), lse


def cpu_flash_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, heads: Heads
) -> tuple[Tensor, ...]:
    groups = k.size(1)
    args = (x.transpose(0, 1)[None] for x in (dy, q, *repeated(k, v, q), y))
    gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(*args, lse, 0.0, True, scale=heads.scale)
    dq, dk, dv = (g[0].transpose(0, 1) for g in gradients)  # (L, H, D)
    if groups < q.size(1):
        dk, dv = (g.unflatten(1, (groups, -1)).sum(2) for g in (dk, dv))
    return dq, dk, dv


def repeated(k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """k and v with a head for each of q's."""
    times = q.size(1) // k.size(1)
    return (k, v) if times == 1 else (k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def to_groups(q: Tensor, k: Tensor) -> Tensor:
    """(T, H, D) -> (G, R * T, D): the queries that share a head of k, one under the other."""
    return q.unflatten(1, (k.size(1), -1)).permute(1, 2, 0, 3).flatten(1, 2)


def from_groups(y: Tensor, like: Tensor) -> Tensor:
    """(G, R * T, D) -> (T, H, D)."""
    return y.unflatten(1, (-1, like.size(0))).permute(2, 0, 1, 3).flatten(1, 2)
