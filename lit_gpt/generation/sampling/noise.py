"""Random numbers that depend on a seed, a position in a text and a token id alone, not on neighbours or device.

A token is drawn by a race: each token has a waiting time, exponential with its probability as rate, and the shortest
one is that of each token with that token's probability. Waiting times that are a hash of (seed, position, id) need no
state, can be made for a few candidates only, and are the same whether or not a text is decoded speculatively.

Letters: B rows, n candidates.
"""

from torch import Tensor

_GOLDEN_64, _GOLDEN_32 = 0x9E3779B97F4A7C15, 0x9E3779B1
"""Odd numbers near 2^64 and 2^32 divided by the golden ratio: their multiples are spread over all bits."""
_FACTORS_64 = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Factors of SplitMix64's output function (Steele, Lea and Flood 2014; variant 13 of David Stafford)."""
_FACTORS_32 = (0x21F0AAAD, 0x735A2D97)
"""Factors of a hash of 32 bits with little bias, found by search (github.com/skeeto/hash-prospector)."""


def key(seed: int, position: int) -> tuple[int, int]:
    """Returns two signed numbers of 32 bits that stand for a position in the text of a seed."""
    x = _mixed(_mixed(seed) + (position + 1) * _GOLDEN_64)
    return _signed(x >> 32), _signed(x & 0xFFFFFFFF)


def waiting_times(keys: Tensor, ids: Tensor) -> Tensor:
    """Returns exponential waiting times of rate 1, (B, n), for tokens `ids`, (n,) or (B, n) int32, of rows.

    They are made of 31 random bits, of which small values keep all: a token of probability 1e-8 is drawn as often as it
    should be.

    Args:
        keys: two numbers for each row, (B, 2) int32.
    """
    first, second = keys[:, :1], keys[:, 1:]
    x = ids * _signed(_GOLDEN_32) + first  # (B, n) int32, which wraps around
    x ^= (x >> 16).bitwise_and_(0xFFFF)  # `>>` repeats the sign, and this does not
    x *= _FACTORS_32[0]
    x ^= second
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _FACTORS_32[1]
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    uniform = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()


def _mixed(x: int) -> int:
    """Returns 64 bits of which each depends on all of x's."""
    x &= 2**64 - 1
    for shift, factor in zip((30, 27), _FACTORS_64, strict=True):
        x = ((x ^ (x >> shift)) * factor) & (2**64 - 1)
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x
