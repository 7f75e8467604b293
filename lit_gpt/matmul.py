"""Matrix products in 16 bits, on a CPU that has none by those of fp32.

A CPU without AVX-512 takes 7 to 60 times as long for a large product in 16 bits as for one in fp32. There the factors
are widened, a part of the weight at a time, so that no whole copy of it exists, and the result is rounded.

Shapes: K channels of the input, M of the output; N rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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


def dtype_of_product(x: Tensor) -> torch.dtype:
    """What torch makes a product with `x` on a CPU in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def widens(x: Tensor) -> bool:
    """Whether products with `x` are made in fp32."""
    return x.device.type == "cpu" and dtype_of_product(x) in MISSING


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same in fp32, if this is a CPU that has no products in their dtype, the first one's."""
    x = tensors[0]
    return tuple(x.float() for x in tensors) if x.device.type == "cpu" and x.dtype in MISSING else tensors


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, (..., K) and (K, M) -> (..., M)."""
    if not widens(a):
        return a @ b
    rows, step = a.flatten(0, -2), max(1, PART // b.size(1))
    y = rows.new_zeros(rows.size(0), b.size(1), dtype=torch.float32)
    for of_a, of_b in zip(rows.split(step, 1), b.split(step), strict=True):
        y.addmm_(of_a.float(), of_b.float())  # in place, autocast leaves it alone
    return y.to(dtype_of_product(a)).view(*a.shape[:-1], b.size(1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, (..., K) and (M, K) -> (..., M)."""
    if not widens(x) or x.numel() <= FEW * x.size(-1):
        return F.linear(x, weight, bias)
    y = x.new_empty(*x.shape[:-1], weight.size(0), dtype=dtype_of_product(x))
    wide, step = x.float(), max(1, PART // weight.size(1))
    with torch.autocast("cpu", enabled=False):
        for at in range(0, weight.size(0), step):
            of_weight, of_bias = (None if p is None else p[at : at + step].float() for p in (weight, bias))
            y[..., at : at + step] = F.linear(wide, of_weight, of_bias)
    return y


def add_matmul(out: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """out (N, M) += alpha * a @ b, (N, K) and (K, M)."""
    if not widens(a):
        out.addmm_(a, b, alpha=alpha)
    else:
        out.add_(torch.zeros_like(out, dtype=torch.float32).addmm_(a.float(), b.float()), alpha=alpha)
