"""Dropout (https://jmlr.org/papers/v15/srivastava14a.html) that keeps a seed instead of a mask.

The mask is a function of the seed, of the token and of the channel, so that the backward pass recomputes it. A token is
known by a key that is made of the text up to it: what is dropped of a sample is the same whichever micro-batch, and
whichever of several devices, computes it.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lit_gpt.layers.compiled import compiled_on_gpu

_PLACES = 2**18
"""Number of places in a row of random bits where the mask of a token can begin on a CPU."""


class Draws:
    """What dropout and noise draw from while a model trains: a seed for each layer, and a key for each token.

    Without a seed, as outside of a run, each layer draws one from torch's generator; without keys, tokens are told by
    their places in the micro-batch.
    """

    def __init__(self) -> None:
        self.n = 0
        """Number of layers that draw."""
        self.seeds: Tensor | None = None
        """(n,) int64 below 2^31, or None."""
        self.keys: Tensor | None = None
        """Key of each token that the layers are given now, (N,) int32, or None."""

    def add_layer(self) -> int:
        """Returns the number of one more layer that draws."""
        self.n += 1
        return self.n - 1

    def begin(self, seed: int, step: int, device: torch.device) -> None:
        """Sets the seed of every layer for an optimizer step, in place: a recorded CUDA graph reads that tensor."""
        drawn = np.random.default_rng((seed, step, 1)).integers(0, 2**31 - 1, self.n)
        if self.seeds is None or len(self.seeds) != self.n:
            self.seeds = torch.zeros(self.n, dtype=torch.int64, device=device)
        self.seeds.copy_(torch.from_numpy(drawn), non_blocking=True)

    def seed_of(self, layer: int, device: torch.device) -> Tensor:
        """Returns the seed of a layer, (1,) int64 on `device`."""
        if self.seeds is None:
            return torch.randint(2**31 - 1, (1,), device=device)
        return self.seeds[layer : layer + 1]


def token_keys(ids: np.ndarray, positions: np.ndarray, starts: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Returns a key of each token, (T,) int32 >= 0: a hash of its document's tokens up to it.

    Args:
        ids, positions: token ids and their positions in their documents, (T,).
        starts: where each piece of a document begins in the row, (n,).
        owners: the piece with the prefix that each piece follows, (n,); its own number if it follows none.
    """
    h = _mixed(ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + positions.astype(np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(h, dtype=np.uint64)])
    ends = np.append(starts[1:], len(ids))
    before = sums[starts]
    prefix = np.where(owners == np.arange(len(starts)), np.uint64(0), (sums[ends] - before)[owners])
    upto = sums[1:] - np.repeat(before - prefix, ends - starts)
    return (_mixed(upto) & np.uint64(0x7FFFFFFF)).astype(np.int32)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Returns the finalizer of SplitMix64 of unsigned numbers (https://doi.org/10.1145/2714064.2660195, figure 16)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def dropped(x: Tensor, seed: Tensor, p: float, keys: Tensor | None = None) -> Tensor:
    """Returns x (N, C) with each element set to zero with probability p, and the others divided by 1 - p.

    Args:
        seed: (1,) int64 on x's device.
        keys: key of each row, (N,) int32; None tells rows by their places.
    """
    if x.device.type != "cpu":
        return hashed(x, seed, p, keys)
    return _masked(x, int(seed), p, keys).mul_(1 / (1 - p))


def add_dropped(y: Tensor, x: Tensor, seed: Tensor, p: float, keys: Tensor | None = None) -> Tensor:
    """Returns y + dropped(x, seed, p, keys); on a CPU it is added to y in place."""
    if x.device.type != "cpu":
        return _add_hashed(y, x, seed, p, keys)
    return y.add_(_masked(x, int(seed), p, keys), alpha=1 / (1 - p))


def _masked(x: Tensor, seed: int, p: float, keys: Tensor | None) -> Tensor:
    """Returns x (N, C) on a CPU with each element set to zero with probability p.

    The bits of a number are combined with a mask of as many bits, which takes a quarter of the time of `torch.where`.
    """
    bits = _BITS[x.element_size()]
    return (x.view(bits) & _mask_on_cpu(x.shape, bits, seed=seed, p=p, keys=keys)).view(x.dtype)


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the dtype in which its bits are masked."""


@lru_cache(maxsize=1)  # a backward pass needs the same mask twice
def _mask_on_cpu(shape: torch.Size, bits: torch.dtype, seed: int, p: float, keys: Tensor | None) -> Tensor:
    """Returns the mask of a tensor of this shape in a dtype of integers: all bits set where an element stays, or none.

    Rows with keys are windows into one row of the mask, each from a place of its own on.
    """
    if keys is None:
        kept = _kept_on_cpu(shape.numel(), seed, p).reshape(shape)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(_kept_on_cpu(_PLACES + shape[1], seed, p), shape[1])
        kept = windows[keys.numpy() % _PLACES]
    return torch.from_numpy(kept).to(bits).neg_()


@lru_cache(maxsize=32)  # of a step's layers, of which each micro-batch draws the same: 8 MB
def _kept_on_cpu(n: int, seed: int, p: float) -> np.ndarray:
    """Returns whether each of n elements stays, (n,) bool, by 16 random bits per element.

    Drawing the bits takes most of the time: hence a fast generator, and four elements from each 64-bit number.
    """
    generator = np.random.Generator(np.random.SFC64(seed))
    words = generator.integers(0, 2**64 - 1, -(-n // 4), dtype=np.uint64, endpoint=True)
    return words.view(np.int16)[:n] >= round(p * 2**16) - 2**15


@compiled_on_gpu
def hashed(x: Tensor, seed: Tensor, p: float, keys: Tensor | None = None) -> Tensor:
    """Returns `dropped` of x (N, C) with a mask that is computed by hashing, on any device."""
    return torch.where(_kept(x, seed, p, keys), x * (1 / (1 - p)), 0)


@compiled_on_gpu
def _add_hashed(y: Tensor, x: Tensor, seed: Tensor, p: float, keys: Tensor | None = None) -> Tensor:
    return y + torch.where(_kept(x, seed, p, keys), x * (1 / (1 - p)), 0)


def _kept(x: Tensor, seed: Tensor, p: float, keys: Tensor | None) -> Tensor:
    """Returns the mask of x (N, C), True where an element stays, by a hash of its row's key and its channel."""
    return (hash_of(x, seed, keys) & 0x7FFFFFFF) >= int(p * 2**31)


def hash_of(x: Tensor, seed: Tensor, keys: Tensor | None) -> Tensor:
    """Returns 32 random bits for each element of x (N, C), int32, by a hash of its row's key and its channel.

    The hash is the finalizer of MurmurHash3, in 32 bits.

    Args:
        seed: (1,) int64 on x's device.
        keys: key of each row, (N,) int32; None hashes an element's index.
    """
    channel = torch.arange(x.size(1), device=x.device, dtype=torch.int32)
    if keys is None:
        h = torch.arange(x.size(0), device=x.device, dtype=torch.int32)[:, None] * x.size(1) + channel
        h = h * -1640531535  # 2654435761, the golden ratio's fraction, as a signed number
    else:
        h = keys[:, None] ^ (channel * -1640531535)
    h = h + seed.to(torch.int32)
    h = (h ^ ((h >> 16) & 0xFFFF)) * -2048144789  # 0x85EBCA6B
    h = (h ^ ((h >> 13) & 0x7FFFF)) * -1028477387  # 0xC2B2AE35
    return h ^ ((h >> 16) & 0xFFFF)
