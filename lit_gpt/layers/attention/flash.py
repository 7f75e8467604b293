"""Packed attention of all documents at once by torch's FlashAttention kernels on a GPU."""

from functools import partial

import torch
from torch import Tensor

from lit_gpt.layers.attention.documents import Documents
from lit_gpt.layers.attention.heads import Heads
from lit_gpt.layers.compiled import compiled_on_gpu

aten = torch.ops.aten


def flash_can(qkv: Tensor, heads: Heads) -> bool:
    """Returns whether torch's FlashAttention kernels support these tensors, heads and GPU."""
    return qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16) and not heads.softcap and (
        heads.head_size % 8 == 0 and heads.head_size <= 256 and torch.cuda.get_device_capability()[0] >= 8
    )  # fmt: skip


def flash(q: Tensor, k: Tensor, v: Tensor, documents: Documents, heads: Heads) -> tuple[Tensor, ...]:
    """Returns attention (T, H, D), and what else `flash_backward` needs: the scores' logsumexp and the RNG state.

    A document with a shared prefix attends to its own piece and to the prefix in two separate calls. The two outputs
    are combined with weights from their logsumexp (https://arxiv.org/abs/2402.05099, section 3).
    """
    o, longest = documents.offsets, max(documents.lengths)
    window = {"window_size_left": heads.window - 1, "window_size_right": 0} if heads.window else {}
    y, lse, state, unused, _ = aten._flash_attention_forward(
        q, k, v, o, o, longest, longest, 0.0, True, False, scale=heads.scale, **window
    )
    if (c := documents.shared_prefixes) is not None:
        keys, values = k[: c.n_keys], v[: c.n_keys]
        z, lse_z, *_ = aten._flash_attention_forward(
            q, keys, values, c.queries, c.keys, *c.max_lengths, 0.0, False, False, scale=heads.scale
        )
        y, lse = _combined(y, z, lse.mT, lse_z.mT, c.after_prefix)
    return y, lse, state, unused


def flash_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, state: Tensor, unused: Tensor,
    documents: Documents, heads: Heads,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Returns the gradients of q (T, H, D), k and v (T, G, D)."""
    o, longest = documents.offsets, max(documents.lengths)
    window = {"window_size_left": heads.window - 1, "window_size_right": 0} if heads.window else {}
    dq, dk, dv = aten._flash_attention_backward(
        dy, q, k, v, y, lse, o, o, longest, longest, 0.0, True, state, unused, scale=heads.scale, **window
    )
    if (c := documents.shared_prefixes) is not None:  # with the combined logsumexp, the gradients of both calls add up
        keys, values = k[: c.n_keys], v[: c.n_keys]
        prefix_dq, prefix_dk, prefix_dv = aten._flash_attention_backward(
            dy, q, keys, values, y, lse, c.queries, c.keys, *c.max_lengths, 0.0, False, state, unused, scale=heads.scale
        )
        dq = _added(dq, prefix_dq, c.after_prefix)
        is_key = (torch.arange(c.n_keys, device=q.device) < c.keys[-1])[:, None, None]
        for whole, part in ((dk, prefix_dk), (dv, prefix_dv)):
            whole[: c.n_keys] = _added(whole[: c.n_keys], part, is_key)
    return dq, dk, dv


@partial(compiled_on_gpu, dynamic=1)
def _combined(y: Tensor, z: Tensor, lse: Tensor, lse_z: Tensor, after_prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns attention to the union of two sets of keys, (T, H, D), and its logsumexp, (H, T).

    Args:
        y, z: attention to each of the sets, (T, H, D).
        lse, lse_z: logsumexp of the scores of each set, (T, H) fp32.
        after_prefix: True for the tokens that see the second set, (T, 1, 1) bool; elsewhere z is ignored.
    """
    lse, lse_z = lse[..., None], lse_z[..., None]
    both = torch.where(after_prefix, torch.logaddexp(lse, lse_z), lse)
    mixed = y * (lse - both).exp() + z * (lse_z - both).exp()
    return torch.where(after_prefix, mixed, y).to(y.dtype), both.squeeze(-1).mT.contiguous()


@partial(compiled_on_gpu, dynamic=1)
def _added(whole: Tensor, part: Tensor, where: Tensor) -> Tensor:
    """Returns whole + part, (T, heads, D), at the tokens `where`, (T, 1, 1) bool, and whole elsewhere."""
    return torch.where(where, whole + part, whole)
