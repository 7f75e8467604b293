"""Dropout (https://jmlr.org/papers/v15/srivastava14a.html) that keeps a seed instead of a mask.

The mask is a function of the seed and of the element's index, so that the backward pass recomputes it.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lit_gpt.layers.compiled import compiled_on_gpu


def dropped(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Returns x (N, C) with each element set to zero with probability p, and the others divided by 1 - p.

    Args:
        seed: (1,) int64 on x's device.
    """
    if x.device.type != "cpu":
        return hashed(x, seed, p)
    return torch.where(_kept_on_cpu(x.shape, int(seed), p), x, 0).mul_(1 / (1 - p))  # three times as fast as x * mask


def add_dropped(y: Tensor, x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Returns y + dropped(x, seed, p); on a CPU it is added to y in place."""
    if x.device.type != "cpu":
        return _add_hashed(y, x, seed, p)
    return y.add_(torch.where(_kept_on_cpu(x.shape, int(seed), p), x, 0), alpha=1 / (1 - p))


@lru_cache(maxsize=1)  # a backward pass needs the same mask twice
def _kept_on_cpu(shape: torch.Size, seed: int, p: float) -> Tensor:
    """Returns the mask, True where an element stays, from 16 random bits per element.

    Drawing the bits takes most of the time: hence a fast generator, and four elements from each 64-bit number.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(0, 2**64 - 1, -(-shape.numel() // 4), dtype=np.uint64, endpoint=True)
    bits = torch.from_numpy(words.view(np.int16)[: shape.numel()]).view(shape)
    return bits >= round(p * 2**16) - 2**15


@compiled_on_gpu
def hashed(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Returns `dropped` of x (N, C) with a mask that is computed by hashing, on any device."""
    return torch.where(_kept(x, seed, p), x * (1 / (1 - p)), 0)


@compiled_on_gpu
def _add_hashed(y: Tensor, x: Tensor, seed: Tensor, p: float) -> Tensor:
    return y + torch.where(_kept(x, seed, p), x * (1 / (1 - p)), 0)


def _kept(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Returns the mask of x (N, C), True where an element stays, by a hash of its index.

    The hash is the finalizer of MurmurHash3, in 32 bits.
    """
    row_start = torch.arange(x.size(0), device=x.device, dtype=torch.int32)[:, None] * x.size(1)
    h = row_start + torch.arange(x.size(1), device=x.device, dtype=torch.int32)
    h = h * -1640531535 + seed.to(torch.int32)  # 2654435761, the golden ratio's fraction, as a signed number
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35
    h = h ^ ((h >> 16) & 0xFFFF)
    return (h & 0x7FFFFFFF) >= int(p * 2**31)
