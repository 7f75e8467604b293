"""Triton kernels for attention of one token per row over a KV cache.

The number of filled positions is read on the GPU, so that the same launches serve a text of any length.

Letters: B rows, H query heads, G key/value heads, R = H / G, D head_size, S cached positions.
"""

import torch
import triton  # pyright: ignore[reportMissingImports] it comes with torch for GPUs only
import triton.language as tl  # pyright: ignore[reportMissingImports] as above
from torch import Tensor

_SPLITS = 256
"""Target number of programs of the attention kernel: about two for each multiprocessor of the largest GPUs."""
_POSITIONS = 32
"""Cached positions that one program of the attention kernel reads at a time."""


@triton.jit
def _rotate_and_store_kernel(
    q,
    k,
    v,
    cos,
    sin,
    position,
    base,
    rotated_q,
    cached_k,
    cached_v,
    position_stride,
    q_stride_b,
    q_stride_h,
    k_stride_b,
    k_stride_h,
    v_stride_b,
    v_stride_h,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes rotated q to `rotated_q` (B, H, D), and rotated k and plain v to their caches (places, G, D)."""
    b, h = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    in_head = d < D
    cache_offset = (tl.load(base + b) + tl.load(position + b) * position_stride) * G * D
    if h < H + G:
        if h < H:
            source = q + b * q_stride_b + h * q_stride_h
            target = rotated_q + (b * H + h) * D
        else:
            source = k + b * k_stride_b + (h - H) * k_stride_h
            target = cached_k + cache_offset + (h - H) * D
        x = tl.load(source + d, mask=in_head, other=0)
        half: tl.constexpr = ROTATED // 2
        is_rotated = d < ROTATED
        other = tl.where(d < half, d + half, d - half)
        pair = tl.load(source + other, mask=is_rotated, other=0).to(tl.float32)
        c = tl.load(cos + b * ROTATED + d, mask=is_rotated, other=1).to(tl.float32)
        s = tl.load(sin + b * ROTATED + d, mask=is_rotated, other=0).to(tl.float32)
        x = x.to(tl.float32) * c + tl.where(d < half, -pair, pair) * s
        tl.store(target + d, x.to(rotated_q.dtype.element_ty), mask=in_head)
    else:
        source = v + b * v_stride_b + (h - H - G) * v_stride_h
        tl.store(cached_v + cache_offset + (h - H - G) * D + d, tl.load(source + d, mask=in_head), mask=in_head)


@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    position,
    base,
    sums,
    largest,
    weights,
    position_stride,
    scale,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes softmax-weighted sums of v over one part of the positions, for the R query heads of one key/value head.

    Writes `sums` (B, G, parts, R, D), and the largest score and the sum of weights of each, (B, G, parts, R).
    """
    row, part, n_parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    R: tl.constexpr = H // G
    b, g = row // G, row % G
    end = tl.load(position + b).to(tl.int32) + 1
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(end - WINDOW, 0)
    size = tl.cdiv(tl.cdiv(end - begin, n_parts), BLOCK_S) * BLOCK_S
    begin += part * size
    end = tl.minimum(begin + size, end)

    r, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    heads = (r < R)[:, None] & (d < D)[None, :]
    queries = tl.load(q + (b * H + g * R + r)[:, None] * D + d[None, :], mask=heads, other=0)
    row_start = tl.load(base + b).to(tl.int64) * G * D + g * D
    m = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    y = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        in_range = (s < end)[:, None] & (d < D)[None, :]
        offsets = row_start + s.to(tl.int64)[:, None] * position_stride * (G * D) + d[None, :]
        keys = tl.load(k + offsets, mask=in_range, other=0)
        values = tl.load(v + offsets, mask=in_range, other=0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        if CAP > 0:
            scores = (2 * tl.sigmoid(scores * (2 / CAP)) - 1) * CAP
        scores = tl.where((s < end)[None, :], scores, float("-inf"))
        highest = tl.maximum(m, tl.max(scores, 1))
        p = tl.exp(scores - highest[:, None])
        rescale = tl.exp(m - highest)
        total = total * rescale + tl.sum(p, 1)
        y = y * rescale[:, None] + tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
        m = highest
    part_offsets = (row * n_parts + part) * R + r
    tl.store(largest + part_offsets, m, mask=r < R)
    tl.store(weights + part_offsets, total, mask=r < R)
    tl.store(sums + part_offsets[:, None] * D + d[None, :], y, mask=heads)


@triton.jit
def _combine_kernel(
    sums, largest, weights, y, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr
):
    """Combines the parts that `_attend_kernel` wrote, into y (B, H, D)."""
    head = tl.program_id(0)
    part, d = tl.arange(0, PARTS), tl.arange(0, BLOCK_D)
    part_offsets = (head // R * PARTS + part) * R + head % R
    m = tl.load(largest + part_offsets)
    share = tl.exp(m - tl.max(m, 0))
    total = tl.sum(share * tl.load(weights + part_offsets), 0)
    partial_sums = tl.load(sums + part_offsets[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0)
    out = tl.sum(share[:, None] * partial_sums, 0) / total
    tl.store(y + head * D + d, out.to(y.dtype.element_ty), mask=d < D)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    cached: tuple[Tensor, Tensor],
    position: Tensor,
    scale: float,
    cap: float = 0.0,
    window: int = 0,
    base: Tensor | None = None,
    position_stride: int | None = None,
) -> Tensor:
    """Rotates q and k, stores k and v, and returns attention to all positions up to `position`, (B, 1, H * D).

    Args:
        q, k, v: (B, H, 1, D) and (B, G, 1, D), the last dimension contiguous.
        cos, sin: (B, 1, 1, channels that are rotated), fp32.
        cached: keys and values, (..., G, D) each and contiguous; written at `position`.
        position: position of the token in each row, (B,).
        scale: factor of the scores.
        cap: soft cap of the scores, as in `Config.attn_logit_softcapping`; 0 means none.
        window: number of positions that a token sees, its own included; 0 means all.
        base: where each row begins in `cached`, (B,), counted in places of (G, D); 0 .. B-1 if not given.
        position_stride: places from a position of a row to its next one; B if not given, for a cache (S, B, G, D).
    """
    B, H, _, D = q.shape
    base = torch.arange(B, device=q.device) if base is None else base
    position_stride = position_stride or B
    G = k.size(1)
    R, block_d = H // G, max(16, triton.next_power_of_2(D))
    keys, values = cached
    rotated_q = q.new_empty(B, H, D)
    _rotate_and_store_kernel[(B, H + 2 * G)](  # pyright: ignore[reportIndexIssue] where Triton is not
        q,
        k,
        v,
        cos,
        sin,
        position,
        base,
        rotated_q,
        keys,
        values,
        position_stride,
        *(x.stride(i) for x in (q, k, v) for i in (0, 1)),
        H=H,
        G=G,
        D=D,
        ROTATED=cos.size(-1),
        BLOCK_D=block_d,
        num_warps=1,
    )
    parts = min(64, triton.next_power_of_2(triton.cdiv(_SPLITS, B * G)))
    sums = torch.empty(B * G * parts * R, D, dtype=torch.float32, device=q.device)
    largest, weights = (torch.empty(B * G * parts * R, dtype=torch.float32, device=q.device) for _ in range(2))
    _attend_kernel[(B * G, parts)](  # pyright: ignore[reportIndexIssue] as above
        rotated_q,
        keys,
        values,
        position,
        base,
        sums,
        largest,
        weights,
        position_stride,
        scale,
        H=H,
        G=G,
        D=D,
        CAP=cap,
        WINDOW=window,
        BLOCK_R=max(16, triton.next_power_of_2(R)),
        BLOCK_D=block_d,
        BLOCK_S=_POSITIONS,
        PRECISION="ieee",
        num_warps=4,
        num_stages=2,
    )
    y = q.new_empty(B, 1, H * D)
    _combine_kernel[(B * H,)](  # pyright: ignore[reportIndexIssue] as above
        sums, largest, weights, y, R=R, D=D, BLOCK_D=block_d, PARTS=parts, num_warps=2
    )
    return y
