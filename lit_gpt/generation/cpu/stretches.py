"""Keys of rows that feed one token each, many rows as one tensor: a call of attention takes longer than its products.

Answers to one prompt take extents of one length, one after the other: their keys lie at equal distances in the pool,
and a view of it has them all, without a copy. TorchScript compiles these functions, too.

Letters: n rows, G key/value heads, S keys of a row, D head_size, P positions of the pool.
"""

from torch import Tensor


def stretch_end(begins: list[int], ends: list[int], first: int) -> int:
    """Returns the index after the last row that goes with row `first`: as many keys each, at equal distances.

    Args:
        begins, ends: for each row, where in the pool its keys begin and end.
    """
    stop = first + 1
    while stop < len(begins):
        distance = begins[stop] - begins[stop - 1]
        if distance <= 0 or distance != begins[first + 1] - begins[first]:
            break
        if ends[stop] - begins[stop] != ends[first] - begins[first]:
            break
        stop += 1
    return stop


def stretch_of(pool: Tensor, begins: list[int], ends: list[int], first: int, stop: int) -> Tensor:
    """Returns the rows `first` .. `stop` of one stretch as a view of the pool (P, G, D): (n, G, S, D)."""
    distance = begins[first + 1] - begins[first] if stop > first + 1 else 0
    sizes = [stop - first, pool.size(1), ends[first] - begins[first], pool.size(2)]
    strides = [distance * pool.stride(0), pool.stride(1), pool.stride(0), pool.stride(2)]
    return pool[begins[first] :].as_strided(sizes, strides)
