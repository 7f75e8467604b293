"""Tensors as gguf files have them, and back."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
"""Values of a row that share a scale in Q8_0."""
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": (BLOCK + 2) / BLOCK}
"""Bytes of a value, in the types that we write."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
"""Types that we read, besides those of `DTYPES`."""


def encoded(x: Tensor, kind: str) -> Tensor:
    """The bytes of `x` as a type of `BYTES`; values beyond the range of F16 become infinite."""
    if kind != "Q8_0":
        return x.to(DTYPES[kind]).contiguous().view(-1).view(torch.uint8)
    blocks = x.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    inverse = torch.where(scales == 0, 0.0, 1 / scales)
    scaled = blocks * inverse
    size = scaled.abs()
    whole = size.floor()
    rounded = (whole + (size - whole >= 0.5)) * scaled.sign()  # halves away from zero, as llama.cpp rounds
    return torch.cat((scales.half().view(torch.uint8), rounded.to(torch.int8).view(torch.uint8)), dim=1).view(-1)


def decoded(data: np.ndarray, kind: Any, shape: tuple[int, ...]) -> Tensor:
    """The values of bytes of a type: in fp32 if it is quantized, as they are otherwise.

    Args:
        kind: a `gguf.GGMLQuantizationType`.
    """
    if kind.name in DTYPES:
        return torch.from_numpy(data).view(DTYPES[kind.name]).view(shape)
    from gguf import dequantize

    rows = int(np.prod(shape[:-1]))
    return torch.from_numpy(dequantize(data.reshape(rows, -1), kind)).view(shape)


def paired(x: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys so that channels that are rotated together are neighbours; ours are half a head apart."""
    return x.view(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def unpaired(x: Tensor, heads: int) -> Tensor:
    """Inverse of `paired`."""
    return x.view(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)
