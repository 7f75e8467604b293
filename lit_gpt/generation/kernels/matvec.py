"""A Triton kernel that multiplies weights by a single row, which takes the time to read the weights.

Letters: N output channels, K input channels.
"""

from typing import NamedTuple

import triton  # pyright: ignore[reportMissingImports] it comes with torch for GPUs only
import triton.language as tl  # pyright: ignore[reportMissingImports] as above
from torch import Tensor

_TILE = 4096
"""16-bit weights that a program has in flight; twice as many 8-bit ones."""


@triton.jit
def _matmul_kernel(
    x,
    weight,
    scale,
    bias,
    gate,
    gate_scale,
    gate_bias,
    y,
    n_rows,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Computes y (N,) = scale * (weight (N, K) @ x (K,)) + bias.

    Each program computes ROWS elements of y and reads COLUMNS columns of the weight at a time. With an ACTIVATION, y is
    multiplied by activation(g), where g is computed in the same way from the gate's weight, scale and bias.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_range = rows < n_rows
    columns = tl.arange(0, COLUMNS)
    row_offsets = rows[:, None].to(tl.int64) * K
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    gate_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, COLUMNS):
        k = start + columns
        if EVEN:
            a = tl.load(x + k).to(tl.float32)[None, :]
            w = tl.load(weight + row_offsets + k[None, :], eviction_policy="evict_first")
            if ACTIVATION != "":
                v = tl.load(gate + row_offsets + k[None, :], eviction_policy="evict_first")
        else:
            in_weight = in_range[:, None] & (k < K)[None, :]
            a = tl.load(x + k, mask=k < K, other=0).to(tl.float32)[None, :]
            w = tl.load(weight + row_offsets + k[None, :], mask=in_weight, other=0.0)
            if ACTIVATION != "":
                v = tl.load(gate + row_offsets + k[None, :], mask=in_weight, other=0.0)
        sums += w.to(tl.float32) * a
        if ACTIVATION != "":
            gate_sums += v.to(tl.float32) * a
    total = tl.sum(sums, 1)
    if HAS_SCALE:
        total *= tl.load(scale + rows, mask=in_range, other=0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=in_range, other=0).to(tl.float32)
    if ACTIVATION != "":
        g = tl.sum(gate_sums, 1)
        if HAS_SCALE:
            g *= tl.load(gate_scale + rows, mask=in_range, other=0).to(tl.float32)
        if HAS_BIAS:
            g += tl.load(gate_bias + rows, mask=in_range, other=0).to(tl.float32)
        if ACTIVATION == "silu":
            g *= tl.sigmoid(g)
        elif ACTIVATION == "gelu_tanh":
            g *= tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        else:
            g *= 0.5 * (1 + tl.erf(g * 0.7071067811865476))
        total *= g
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=in_range)


class Weight(NamedTuple):
    """A linear layer whose weight the kernel reads as it is stored."""

    weight: Tensor
    """(N, K), contiguous, of any dtype that Triton converts to fp32."""
    scale: Tensor | None = None
    """(N,), scale of each row of the weight."""
    bias: Tensor | None = None
    """(N,)."""


def matvec(x: Tensor, layer: Weight, gate: Weight | None = None, activation: str = "") -> Tensor:
    """Returns a linear layer's output for a single row x, (..., K) -> (..., N), summed in fp32.

    Args:
        gate: a layer of the same kind and size; the output is multiplied by activation(gate(x)).
        activation: silu, gelu or gelu_tanh.
    """
    N, K = layer.weight.shape
    y = x.new_empty(*x.shape[:-1], N)
    tile = _TILE * (2 if layer.weight.element_size() == 1 else 1) // (1 if gate is None else 2)
    columns = next((c for c in (1024, 512, 256) if K % c == 0), 512)
    rows = tile // columns
    pointers = [
        x if p is None else p for p in (*layer, *(gate or layer))
    ]  # a pointer that stands in for a missing tensor is never read
    _matmul_kernel[(triton.cdiv(N, rows),)](  # pyright: ignore[reportIndexIssue] where Triton is not
        x.contiguous(),
        *pointers,
        y,
        N,
        K=K,
        ROWS=rows,
        COLUMNS=columns,
        HAS_SCALE=layer.scale is not None,
        HAS_BIAS=layer.bias is not None,
        ACTIVATION=activation,
        EVEN=K % columns == 0 and N % rows == 0,
        num_warps=4,
    )
    return y
