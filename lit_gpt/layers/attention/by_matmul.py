"""Packed attention by matmuls, on groups of blocks of queries (`lit_gpt.layers.attention.blocks`).

This serves CPUs, and GPUs whose flash kernels cannot be used, as they support neither a soft cap nor fp32. On a CPU,
long documents are left to a fused kernel (`lit_gpt.layers.attention.cpu_flash`).

Shapes as in this package; n blocks of a group, L queries and S keys of a block. A row is one head of one token.
"""

import torch
from torch import Tensor

from lit_gpt.layers.attention.blocks import Group, Layout, layout
from lit_gpt.layers.attention.cpu_flash import cpu_flash, cpu_flash_backward, longest_by_matmul
from lit_gpt.layers.attention.documents import Documents
from lit_gpt.layers.attention.heads import Heads, split
from lit_gpt.layers.attention.sinks import softmax_with_sinks

_aten = torch.ops.aten


def attend(qkv: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None = None) -> tuple[Tensor, ...]:
    """Returns the output of attention, (T, H, D), for rotated qkv (T, sum(sizes)), and what the fused kernel needs."""
    q, k, v = split(qkv, heads)
    plan, parts, kept = _layout(qkv, documents, heads, sinks), [], []
    for group in plan.groups:
        grouped = _gathered(qkv, group, heads)
        p, *_ = _probabilities(*grouped[:2], group=group, heads=heads, sinks=sinks)
        y = p.bmm(grouped[2]).view(-1, heads.head_size)
        parts.append(y.index_select(0, group.used).view(-1, *q.shape[1:]))
    for own, prefix in plan.alone:
        y, lse = cpu_flash(q[own], *(_seen(x, own, prefix) for x in (k, v)), heads=heads)
        parts.append(y)
        kept.append(lse)
    return _joined(parts, plan.order), *kept


def attend_backward(
    dy: Tensor, qkv: Tensor, y: Tensor, *kept: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Returns the gradients of rotated q (T, H, D), k and v (T, G, D), and of the sinks, (H,), if there are any.

    The probabilities are recomputed.

    Args:
        dy, y: the gradient of the output and the output itself, (T, H, D).
        kept: what `attend` returned after the output.
    """
    q, k, v = split(qkv, heads)
    plan, dq, d_kv = _layout(qkv, documents, heads, sinks), [], []
    before = torch.zeros(len(qkv), 2, *k.shape[1:], dtype=torch.float32, device=qkv.device)  # sums of many blocks
    d_sinks = [] if sinks is None else [torch.zeros_like(sinks)]
    for group in plan.groups:
        d_rows, d_slots, *d_logits = _group_backward(dy, qkv, group, heads=heads, sinks=sinks)
        dq.append(d_rows.index_select(0, group.used).view(-1, *q.shape[1:]))
        d_kv.append(d_slots.view(-1, heads.head_size).index_select(0, group.own).view(-1, 2, *k.shape[1:]))
        for blocks, slots, tokens in group.shared:
            _add(before, d_slots[:, blocks, :, slots].sum(1, dtype=torch.float32).permute(2, 0, 1, 3), tokens)
        for total, part in zip(d_sinks, d_logits, strict=True):
            total += part
    for (own, prefix), lse in zip(plan.alone, kept, strict=True):
        keys, values = (_seen(x, own, prefix) for x in (k, v))
        d_own, *others = cpu_flash_backward(dy[own], q[own], keys, v=values, y=y[own], lse=lse, heads=heads)
        at, d_seen = len(keys) - len(d_own), torch.stack(others, 1)  # (S, 2, G, D)
        dq.append(d_own)
        d_kv.append(d_seen[at:])
        if prefix is not None:
            _add(before, d_seen[:at], (range(prefix.start, prefix.stop),))
    dk, dv = before.add_(_joined(d_kv, plan.order)).unbind(1)
    return _joined(dq, plan.order), dk, dv, *d_sinks


def _group_backward(dy: Tensor, qkv: Tensor, group: Group, heads: Heads, sinks: Tensor | None) -> tuple[Tensor, ...]:
    """Returns the gradients of the queries (n * H * L, D), the keys and values (2, n, G, S, D), and the sinks (H,)."""
    q, k, v = _gathered(qkv, group, heads)
    p, slope, share = _probabilities(q, k, group, heads=heads, sinks=sinks)
    d_out = dy.reshape(-1, heads.head_size).index_select(0, group.outputs)
    d_out = (d_out.index_fill_(0, group.padding, 0) if len(group.padding) else d_out).view(q.shape)
    dp = d_out.bmm(v.mT)
    d_sinks = []
    if share is not None:
        left = (dp.float() * p).sum(-1) * share  # (n * G, R * L)
        d_sinks.append(-left.view(group.size[0], -1, group.size[1]).sum((0, 2)))
    ds = _aten._softmax_backward_data(dp, p, -1, p.dtype)
    ds = ds if slope is None else ds.mul_(slope)
    d_kv = q.new_empty(2, *k.shape)
    _scaled(ds.mT, q, heads, out=d_kv[0])
    torch.bmm(p.mT, d_out, out=d_kv[1])
    dq = _scaled(ds, k, heads).view(-1, heads.head_size)
    return dq, d_kv.unflatten(1, (group.size[0], -1)), *d_sinks


def _layout(qkv: Tensor, documents: Documents, heads: Heads, sinks: Tensor | None) -> Layout:
    most, kind = longest_by_matmul(qkv, heads, sinks), (qkv.dtype, qkv.device)
    return layout(documents.lengths, documents.n_sharing, heads=heads, most=most, kind=kind)


def _gathered(qkv: Tensor, group: Group, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Returns q (n * G, R * L, D), k and v (n * G, S, D) of a group."""
    rows = qkv.reshape(-1, heads.head_size)
    k, v = rows.index_select(0, group.keys).view(2, -1, group.size[2], heads.head_size)
    return rows.index_select(0, group.queries).view(len(k), -1, heads.head_size), k, v


def _seen(x: Tensor, own: slice, prefix: slice | None) -> Tensor:
    """Returns the rows of x (T, G, D) that a document attends to: its prefix, if any, and itself, (S, G, D)."""
    return x[own] if prefix is None else torch.cat((x[prefix], x[own]))


def _add(total: Tensor, part: Tensor, tokens: tuple[range, ...]) -> None:
    """Adds a part, (tokens, ...), to those tokens of the total, (T, ...), in place."""
    for here, x in zip(tokens, part.split([len(t) for t in tokens]), strict=True):
        total[here.start : here.stop] += x


def _joined(parts: list[Tensor], order: Tensor | None) -> Tensor:
    """Returns the parts laid end to end, (T, ...), in the order of the row."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole if order is None else whole.index_select(0, order)


def _scaled(a: Tensor, b: Tensor, heads: Heads, out: Tensor | None = None) -> Tensor:
    """Returns a @ b times the scale of the scores, which is applied before rounding."""
    out = a.new_empty(len(a), a.size(1), b.size(2)) if out is None else out
    return out.baddbmm_(a, b, beta=0, alpha=heads.scale)


def _probabilities(
    q: Tensor, k: Tensor, group: Group, heads: Heads, sinks: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the probabilities (n * G, R * L, S), the derivative of the soft cap, and the share of the sinks.

    The last, (n * G, R * L) in fp32, and the one before are None without sinks and without a soft cap.
    """
    scores, slope, (n, L, S) = _scaled(q, k.mT, heads), None, group.size
    if heads.softcap:
        scores = scores.float().div_(heads.softcap).tanh_()
        slope = 1 - scores.square()
        scores.mul_(heads.softcap)
    by_block = scores.view(n, -1, q.size(1) // L, L, S).add_(group.hidden)  # (n, G, R, L, S)
    if sinks is None:
        return torch.softmax(scores, -1).to(q.dtype), slope, None
    p = softmax_with_sinks(by_block, sinks.view(1, by_block.size(1), -1, 1, 1)).view(scores.shape)
    return p.to(q.dtype), slope, 1 - p.sum(-1)
