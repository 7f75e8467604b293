"""The layout of heads in a row of queries, keys and values, and reshapes between layouts."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """Settings by which attention reads a row of queries, keys and values."""

    sizes: tuple[int, int, int]
    """Channels of q, k and v."""
    head_size: int
    scale: float
    """Factor of the scores before the softmax."""
    softcap: float = 0.0
    """Soft cap c of the scores s, which become c * tanh(s / c); 0 means none."""
    window: int = 0
    """Number of keys that a query sees, its own included (sliding window); 0 means no limit."""


def split(qkv: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """Splits qkv (T, sum(sizes)) into views q (T, H, D), k and v (T, G, D)."""
    return tuple(x.unflatten(-1, (-1, heads.head_size)) for x in qkv.split(heads.sizes, dim=-1))


def to_groups(q: Tensor, k: Tensor) -> Tensor:
    """Groups queries (..., L, H, D) by the key head that they share: (..., G, R * L, D)."""
    return q.unflatten(-2, (k.size(-2), -1)).movedim(-4, -2).flatten(-3, -2)


def from_groups(y: Tensor, q: Tensor) -> Tensor:
    """Undoes `to_groups`: (..., G, R * L, D) -> (..., L, H, D), with the L and H of q."""
    return y.unflatten(-2, (-1, q.size(-3))).movedim(-2, -4).flatten(-3, -2)
