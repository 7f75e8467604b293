"""Packed attention by torch's flash kernels on a GPU, for all documents at once."""

from functools import partial

import torch
from torch import Tensor

from lit_gpt.layers.attention.documents import Documents
from lit_gpt.layers.attention.heads import Heads
from lit_gpt.layers.compiled import compiled_on_gpu

aten = torch.ops.aten


def flash_can(qkv: Tensor, heads: Heads) -> bool:
    """Whether torch's flash attention on a GPU does this."""
    return qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16) and not heads.softcap and (
        heads.head_size % 8 == 0 and heads.head_size <= 256 and torch.cuda.get_device_capability()[0] >= 8
    )  # fmt: skip


def flash(q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads) -> tuple[Tensor, ...]:
    """The result (T, H, D), and what `flash_backward` needs besides: the scores' logsumexp and a random state.

    What goes on from a shared prefix attends to its own piece and to the prefix apart, and both results are
    weighed by their sums of exponentials, as attention in blocks does it (https://arxiv.org/abs/2402.05099, section 3).
    """
    o, longest = documents.offsets, max(documents.lengths)
    window = {"window_size_left": heads.window - 1, "window_size_right": 0} if heads.window else {}
    y, lse, state, unused, _ = aten._flash_attention_forward(
        q, k, v, o, o, longest, longest, 0.0, True, False, scale=heads.scale, **window
    )
    if (c := documents.shared_prefixes) is not None:
        keys, values = k[: c.n_keys], v[: c.n_keys]
        z, lse_z, *_ = aten._flash_attention_forward(
            q, keys, values, c.queries, c.keys, *c.most, 0.0, False, False, scale=heads.scale
        )
        y, lse = _weighed(y, z, lse.mT, lse_z.mT, c.going_on)
    return y, lse, state, unused


def flash_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, state: Tensor, unused: Tensor,
    documents: Documents, heads: Heads,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q (T, H, D), k and v (T, G, D)."""
    o, longest = documents.offsets, max(documents.lengths)
    window = {"window_size_left": heads.window - 1, "window_size_right": 0} if heads.window else {}
    dq, dk, dv = aten._flash_attention_backward(
        dy, q, k, v, y, lse, o, o, longest, longest, 0.0, True, state, unused, scale=heads.scale, **window
    )
    if (c := documents.shared_prefixes) is not None:  # with the logsumexp of both, each is its part of the whole
        keys, values = k[: c.n_keys], v[: c.n_keys]
        eq, ek, ev = aten._flash_attention_backward(
            dy, q, keys, values, y, lse, c.queries, c.keys, *c.most, 0.0, False, state, unused, scale=heads.scale
        )
        dq = _added(dq, eq, c.going_on)
        is_key = (torch.arange(c.n_keys, device=q.device) < c.keys[-1])[:, None, None]
        for whole, part in ((dk, ek), (dv, ev)):
            whole[: c.n_keys] = _added(whole[: c.n_keys], part, is_key)
    return dq, dk, dv


@partial(compiled_on_gpu, dynamic=1)
def _weighed(y: Tensor, z: Tensor, lse: Tensor, lse_z: Tensor, going_on: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to both of two sets of keys, (T, H, D), and its logsumexp, (H, T).

    Args:
        y, z: attention to each set, (T, H, D).
        lse, lse_z: (T, H) fp32.
        going_on: (T, 1, 1), the tokens that see the second set; nothing is read of z elsewhere.
    """
    lse, lse_z = lse[..., None], lse_z[..., None]
    both = torch.where(going_on, torch.logaddexp(lse, lse_z), lse)
    mixed = y * (lse - both).exp() + z * (lse_z - both).exp()
    return torch.where(going_on, mixed, y).to(y.dtype), both.squeeze(-1).mT.contiguous()


@partial(compiled_on_gpu, dynamic=1)
def _added(whole: Tensor, part: Tensor, where: Tensor) -> Tensor:
    """whole + part, (T, heads, D), on the tokens `where`, (T, 1, 1); nothing is read of the part elsewhere."""
    return torch.where(where, whole + part, whole)
