"""Encodes the values of tensors in the types of gguf files, and decodes them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
"""Number of values of a row that share a scale in Q8_0."""
STEP = 2**21
"""Number of values that are converted at a time, since each takes several copies."""
CACHED = 2**18
"""Number of values that are dequantized at a time: their copies stay in the processor's cache."""
_BELOW_HALF = 0.5 - 2**-25
"""Number added before rounding down: with the largest fp32 below a half, halves are rounded away from zero as in
llama.cpp, and the largest number below a half does not become 1."""
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": (BLOCK + 2) / BLOCK}
"""Number of bytes per value, in the types that can be written."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Types that can be read besides those of `DTYPES`."""


def encoded(x: Tensor, kind: str) -> Iterator[Tensor]:
    """Yields the bytes of `x` encoded in a type of `BYTES`, STEP values at a time.

    Raises:
        OverflowError: a value is too large for F16.
    """
    for part in x.contiguous().view(-1).split(STEP):
        if kind == "Q8_0":
            yield _eight_bits(part.float().view(-1, BLOCK)).view(-1)
            continue
        converted = part.to(DTYPES[kind])
        if kind == "F16" and converted.isinf().any():
            raise OverflowError
        yield converted.view(torch.uint8)


def _eight_bits(blocks: Tensor) -> Tensor:
    """Quantizes each row of 32 values to a scale in fp16 and 32 integers: (n, 32) -> (n, 34) bytes."""
    sizes = blocks.abs()
    scales = sizes.amax(dim=1, keepdim=True) / 127
    sizes *= torch.where(scales == 0, 0.0, 1 / scales)
    rounded = sizes.add_(_BELOW_HALF).floor_().copysign_(blocks).to(torch.int8)
    return torch.cat((scales.half().view(torch.uint8), rounded.view(torch.uint8)), dim=1)


def dequantize(data: np.ndarray, kind: str, out: Tensor, scratch: Tensor | None = None) -> None:
    """Dequantizes bytes of a type of `QUANTIZED` into `out`, whose last dimension is a row of the file.

    Args:
        scratch: an fp32 buffer of CACHED values; allocating one for each call takes as long as the work itself.
    """
    if kind == "Q8_0":
        scratch = torch.empty(min(CACHED, out.numel())) if scratch is None else scratch
        blocks = torch.from_numpy(data).view(-1, BLOCK + 2)
        for part, into in zip(blocks.split(CACHED // BLOCK), out.view(-1).split(CACHED), strict=True):
            scales = part[:, :2].contiguous().view(torch.float16).float()
            buffer = scratch[: into.numel()].view(-1, BLOCK)
            into.copy_(torch.mul(part[:, 2:].view(torch.int8), scales, out=buffer).view(-1))
        return
    from gguf import GGMLQuantizationType
    from gguf import dequantize as values_of

    rows = data.reshape(out.numel() // out.size(-1), -1)
    out.copy_(torch.from_numpy(values_of(rows, GGMLQuantizationType[kind])).view(out.shape))
