"""Matmuls on a CPU that torch's own single call would take longer for: they are computed a part at a time.

A CPU without AVX-512 takes 7 to 60 times as long for a large matmul in 16 bits as for one in fp32. There the factors
are upcast one part at a time, so that no fp32 copy exists, and the result is rounded. 8-bit weights are upcast on any
CPU, 4-bit weights where the matmul is in fp32. The upcast part of a weight stays in the cache until it is used.

A CPU with AMX leaves all but one of its cores idle in some 16-bit matmuls (`_is_idle`): they are computed in halves.

Shapes: K input channels, M output channels, N rows.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

_Rows = Callable[[int, int], Tensor]
"""Function (start, stop) -> rows start .. stop of a matrix, in fp32."""
PART = 2**20
"""Elements of a weight that are upcast at once, about: 4 MB in fp32, which fit the cache of a core."""
FEW = 8
"""Largest number of rows for which torch's own matmul with a 16-bit weight is faster than upcasting the weight."""


def missing() -> frozenset[torch.dtype]:
    """Returns the 16-bit dtypes for which this CPU has no fast matmul."""
    found = {torch.bfloat16, torch.float16}
    if torch.backends.mkldnn.is_available():
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            found.discard(torch.bfloat16)
        if torch.ops.mkldnn._is_mkldnn_fp16_supported():
            found.discard(torch.float16)
    return frozenset(found)


MISSING = missing()
HAS_AMX = torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported()


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which torch computes a matmul with `x` on a CPU, autocast considered."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def upcasts(x: Tensor) -> bool:
    """Returns whether matmuls with `x` are computed in fp32 because this CPU has no fast ones in their 16-bit dtype."""
    return x.device.type == "cpu" and matmul_dtype(x) in MISSING


def in_fp32(x: Tensor) -> bool:
    """Returns whether `x` is on a CPU and matmuls with it are computed in fp32, for whatever reason."""
    return upcasts(x) or (x.device.type == "cpu" and matmul_dtype(x) == torch.float32)


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns the tensors in fp32 if the first one is on a CPU without fast matmuls in its dtype, else unchanged."""
    x = tensors[0]
    return tuple(x.float() for x in tensors) if x.device.type == "cpu" and x.dtype in MISSING else tensors


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b, (..., M), for a (..., K) and b (K, M)."""
    if upcasts(a):
        return matmul_by_rows(a, rows_of(b), b.size(1), matmul_dtype(a))
    return _in_halves(a, b) if _is_idle(a, b) else a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x W^T + bias, (..., M), for x (..., K) and W (M, K)."""
    if bias is None and _is_idle(x, weight.mT):
        return _in_halves(x, weight.mT)
    if not upcasts(x) or x.numel() <= FEW * x.size(-1):
        return F.linear(x, weight, bias)
    return linear_by_rows(x, rows_of(weight), weight.size(0), dtype=matmul_dtype(x), bias=bias)


def _is_idle(a: Tensor, b: Tensor) -> bool:
    """Returns whether oneDNN (3.x, in torch 2.13) would compute a @ b, N rows and M columns, on a single core.

    With AMX that is so for M <= N < 2 M: 370 GFLOP/s, where two matmuls of N / 2 rows reach 560 on two cores.
    """
    if not HAS_AMX or not a.dtype == b.dtype == torch.bfloat16 or a.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return b.size(1) <= a.shape[:-1].numel() < 2 * b.size(1) and torch.get_num_threads() > 1


def _in_halves(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b, (..., M), for a (..., K) and b (K, M), without recording for autograd."""
    y = a.new_empty(*a.shape[:-1], b.size(1))
    for part, rows in zip(y.flatten(0, -2).chunk(2), a.flatten(0, -2).chunk(2), strict=True):
        torch.mm(rows, b, out=part)
    return y


def rows_of(weight: Tensor) -> _Rows:
    """Returns the row function of a matrix that is stored as a tensor."""
    return lambda start, stop: weight[start:stop].float()


def matmul_by_rows(a: Tensor, rows: _Rows, M: int, dtype: torch.dtype) -> Tensor:
    """Returns a @ W in `dtype`, (..., M), computed in fp32, for a (..., K) and the rows of W (K, M)."""
    flat = a.flatten(0, -2)
    y = flat.new_zeros(flat.size(0), M, dtype=torch.float32)
    with without_autocast(a):
        for start, stop in _spans(flat.size(1), M):
            y.addmm_(flat[:, start:stop].float(), rows(start, stop))
    return y.to(dtype).view(*a.shape[:-1], M)


def linear_by_rows(x: Tensor, rows: _Rows, M: int, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Returns x W^T + bias in `dtype`, (..., M), computed in fp32, for x (..., K) and the rows of W (M, K)."""
    y, x_fp32 = x.new_empty(*x.shape[:-1], M, dtype=dtype), x.float()
    with without_autocast(x):
        for start, stop in _spans(M, x.size(-1)):
            bias_part = None if bias is None else bias[start:stop].float()
            y[..., start:stop] = F.linear(x_fp32, rows(start, stop), bias_part)
    return y


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Returns a context that disables autocast on the device of x: matmuls keep the dtype of their factors."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _spans(n: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of parts of about PART elements, for n rows of `width` channels."""
    step = max(1, PART // width)
    return ((start, min(start + step, n)) for start in range(0, n, step))


def add_matmul(out: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """Adds alpha * a @ b to `out` (N, M) in place, for a (N, K) and b (K, M)."""
    if not upcasts(a):
        out.addmm_(a, b, alpha=alpha)
    else:
        out.add_(torch.zeros_like(out, dtype=torch.float32).addmm_(a.float(), b.float()), alpha=alpha)
