"""Triton kernels for attention of one token a row over a cache.

How many positions are filled is read on the GPU, so that the same launches serve a text of any length.

Letters: B rows, H query heads, G key/value heads, R = H / G, D head_size, S cached positions.
"""

import torch
import triton  # pyright: ignore[reportMissingImports] it comes with torch for GPUs only
import triton.language as tl  # pyright: ignore[reportMissingImports] as above
from torch import Tensor

_SPLITS = 256
"""Programs that attention aims at: about two for each multiprocessor of the largest GPUs."""
_POSITIONS = 32
"""Cached positions that a program of attention takes at a time."""


@triton.jit
def _place_kernel(
    q,
    k,
    v,
    cos,
    sin,
    position,
    turned,
    cached_k,
    cached_v,
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
    """Rotates q into `turned` (B, H, D) and k into its place in the cache (S, B, G, D), and put v into its own."""
    b, h = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    place = (tl.load(position + b) * tl.num_programs(0) + b) * G * D
    if h < H + G:
        if h < H:
            source = q + b * q_stride_b + h * q_stride_h
            target = turned + (b * H + h) * D
        else:
            source = k + b * k_stride_b + (h - H) * k_stride_h
            target = cached_k + place + (h - H) * D
        x = tl.load(source + d, mask=inside, other=0)
        half: tl.constexpr = ROTATED // 2
        turns = d < ROTATED
        other = tl.where(d < half, d + half, d - half)
        pair = tl.load(source + other, mask=turns, other=0).to(tl.float32)
        c = tl.load(cos + b * ROTATED + d, mask=turns, other=1).to(tl.float32)
        s = tl.load(sin + b * ROTATED + d, mask=turns, other=0).to(tl.float32)
        x = x.to(tl.float32) * c + tl.where(d < half, -pair, pair) * s
        tl.store(target + d, x.to(turned.dtype.element_ty), mask=inside)
    else:
        source = v + b * v_stride_b + (h - H - G) * v_stride_h
        tl.store(cached_v + place + (h - H - G) * D + d, tl.load(source + d, mask=inside), mask=inside)


@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    position,
    sums,
    largest,
    weights,
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

    sums (B, G, parts, R, D), and largest score and sum of weights of each, (B, G, parts, R).
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
    stride = tl.num_programs(0).to(tl.int64) * D  # of a position: the rows are all of its keys
    m = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    y = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        there = (s < end)[:, None] & (d < D)[None, :]
        at = s.to(tl.int64)[:, None] * stride + row * D + d[None, :]
        keys = tl.load(k + at, mask=there, other=0)
        values = tl.load(v + at, mask=there, other=0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        if CAP > 0:
            scores = (2 * tl.sigmoid(scores * (2 / CAP)) - 1) * CAP
        scores = tl.where((s < end)[None, :], scores, float("-inf"))
        highest = tl.maximum(m, tl.max(scores, 1))
        p = tl.exp(scores - highest[:, None])
        fade = tl.exp(m - highest)
        total = total * fade + tl.sum(p, 1)
        y = y * fade[:, None] + tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
        m = highest
    mine = (row * n_parts + part) * R + r
    tl.store(largest + mine, m, mask=r < R)
    tl.store(weights + mine, total, mask=r < R)
    tl.store(sums + mine[:, None] * D + d[None, :], y, mask=heads)


@triton.jit
def _join_kernel(
    sums, largest, weights, y, R: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr
):
    """Joins the parts that `_attend_kernel` wrote to y (B, H, D)."""
    head = tl.program_id(0)
    part, d = tl.arange(0, PARTS), tl.arange(0, BLOCK_D)
    mine = (head // R * PARTS + part) * R + head % R
    m = tl.load(largest + mine)
    share = tl.exp(m - tl.max(m, 0))
    total = tl.sum(share * tl.load(weights + mine), 0)
    pieces = tl.load(sums + mine[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0)
    out = tl.sum(share[:, None] * pieces, 0) / total
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
) -> Tensor:
    """Rotates q and k, stores k and v, and returns attention to all positions up to `position`, (B, 1, H * D).

    Args:
        q, k, v: (B, H, 1, D) and (B, G, 1, D), the last dimension contiguous.
        cos, sin: (B, 1, 1, channels that are rotated), fp32.
        cached: keys and values, (S, B, G, D) each and contiguous; written at `position`.
        position: of the token in each row, (B,).
        scale: of the scores.
        cap: of the scores, as `Config.attn_logit_softcapping`.
        window: positions that are seen, the token's own included; 0 means all.
    """
    B, H, _, D = q.shape
    G = k.size(1)
    R, block_d = H // G, max(16, triton.next_power_of_2(D))
    keys, values = cached
    turned = q.new_empty(B, H, D)
    _place_kernel[(B, H + 2 * G)](  # pyright: ignore[reportIndexIssue] where Triton is not
        q,
        k,
        v,
        cos,
        sin,
        position,
        turned,
        keys,
        values,
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
        turned,
        keys,
        values,
        position,
        sums,
        largest,
        weights,
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
    _join_kernel[(B * H,)](  # pyright: ignore[reportIndexIssue] as above
        sums, largest, weights, y, R=R, D=D, BLOCK_D=block_d, PARTS=parts, num_warps=2
    )
    return y
