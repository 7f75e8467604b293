"""How a row of queries, keys and values holds their heads."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """How attention reads a row of queries, keys and values."""

    sizes: tuple[int, int, int]
    """Channels of q, k and v."""
    head_size: int
    scale: float
    """Of the scores."""
    softcap: float = 0.0
    """Scores s become c * tanh(s / c); 0 leaves them."""
    window: int = 0
    """Keys a query sees, itself included; 0 means all before it."""


def split(qkv: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """(T, sum(sizes)) -> q (T, H, D), k and v (T, G, D), views."""
    return tuple(x.unflatten(-1, (-1, heads.head_size)) for x in qkv.split(heads.sizes, dim=-1))


def to_groups(q: Tensor, k: Tensor) -> Tensor:
    """(..., L, H, D) -> (..., G, R * L, D): the queries that share a head of k, one under the other."""
    return q.unflatten(-2, (k.size(-2), -1)).movedim(-4, -2).flatten(-3, -2)


def from_groups(y: Tensor, q: Tensor) -> Tensor:
    """(..., G, R * L, D) -> (..., L, H, D), for as many queries as q has."""
    return y.unflatten(-2, (-1, q.size(-3))).movedim(-2, -4).flatten(-3, -2)
