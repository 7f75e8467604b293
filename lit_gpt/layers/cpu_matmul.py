"""Matrix products in fp32 with weights that are stored as something else, a part of the weight at a time.

A CPU without AVX-512 takes 7 to 60 times as long for a large product in 16 bits as for one in fp32. There the factors
are widened and the result is rounded. Weights in 8 bits are widened on any CPU, those in 4 bits where the product is
made in fp32. A part of a weight stays in the cache until it is used, and no whole copy exists.

Shapes: K channels of the input, M of the output; N rows.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

_Rows = Callable[[int, int], Tensor]
"""Of a matrix, the rows from one number up to another, in fp32."""
PART = 2**20
"""Numbers of a weight that exist in fp32 at a time, about: 4 MB, which a core's cache holds."""
FEW = 8
"""Up to so many rows, torch reads a 16-bit weight as it is, faster than it could be widened."""


def missing() -> frozenset[torch.dtype]:
    """The 16-bit dtypes that this CPU has no products for."""
    found = {torch.bfloat16, torch.float16}
    if torch.backends.mkldnn.is_available():
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            found.discard(torch.bfloat16)
        if torch.ops.mkldnn._is_mkldnn_fp16_supported():
            found.discard(torch.float16)
    return frozenset(found)


MISSING = missing()


def matmul_dtype(x: Tensor) -> torch.dtype:
    """What torch makes a product with `x` on a CPU in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def upcasts(x: Tensor) -> bool:
    """Whether products with `x` are made in fp32, but would be made in 16 bits elsewhere."""
    return x.device.type == "cpu" and matmul_dtype(x) in MISSING


def in_fp32(x: Tensor) -> bool:
    """Whether products with `x` are made in fp32, on a CPU."""
    return upcasts(x) or (x.device.type == "cpu" and matmul_dtype(x) == torch.float32)


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same in fp32, if this is a CPU that has no products in their dtype, the first one's."""
    x = tensors[0]
    return tuple(x.float() for x in tensors) if x.device.type == "cpu" and x.dtype in MISSING else tensors


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, (..., K) and (K, M) -> (..., M)."""
    return matmul_by_rows(a, rows_of(b), b.size(1), matmul_dtype(a)) if upcasts(a) else a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, (..., K) and (M, K) -> (..., M)."""
    if not upcasts(x) or x.numel() <= FEW * x.size(-1):
        return F.linear(x, weight, bias)
    return linear_by_rows(x, rows_of(weight), weight.size(0), dtype=matmul_dtype(x), bias=bias)


def rows_of(weight: Tensor) -> _Rows:
    """Rows of a matrix that exists."""
    return lambda start, stop: weight[start:stop].float()


def matmul_by_rows(a: Tensor, rows: _Rows, M: int, dtype: torch.dtype) -> Tensor:
    """a @ W in `dtype`, (..., K) -> (..., M), summed in fp32, for W of (K, M)."""
    of_a = a.flatten(0, -2)
    y = of_a.new_zeros(of_a.size(0), M, dtype=torch.float32)
    with as_they_are(a):
        for start, stop in _spans(of_a.size(1), M):
            y.addmm_(of_a[:, start:stop].float(), rows(start, stop))
    return y.to(dtype).view(*a.shape[:-1], M)


def linear_by_rows(x: Tensor, rows: _Rows, M: int, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias in `dtype`, (..., K) -> (..., M), computed in fp32, for W of (M, K)."""
    y, wide = x.new_empty(*x.shape[:-1], M, dtype=dtype), x.float()
    with as_they_are(x):
        for start, stop in _spans(M, x.size(-1)):
            of_bias = None if bias is None else bias[start:stop].float()
            y[..., start:stop] = F.linear(wide, rows(start, stop), of_bias)
    return y


def as_they_are(x: Tensor) -> AbstractContextManager:
    """Within it, products of tensors on the device of x are made in their own dtype, whatever autocast says."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _spans(n: int, width: int) -> Iterator[tuple[int, int]]:
    """The first and one past the last row of each part, of n that are `width` wide."""
    step = max(1, PART // width)
    return ((start, min(start + step, n)) for start in range(0, n, step))


def add_matmul(out: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """out (N, M) += alpha * a @ b, (N, K) and (K, M)."""
    if not upcasts(a):
        out.addmm_(a, b, alpha=alpha)
    else:
        out.add_(torch.zeros_like(out, dtype=torch.float32).addmm_(a.float(), b.float()), alpha=alpha)
