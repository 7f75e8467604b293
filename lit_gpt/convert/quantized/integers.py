"""Weights in integers that are packed into words of 32 bits: compressed-tensors, GPTQ, AWQ.

Shapes: O out_features, I in_features, G groups of columns that share a scale and a zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_gpt.convert.quantized.parts import FLOATS, Parts, Weight, by_rows
from lit_gpt.convert.quantized.scaled import block_of, spread

_WORD = (torch.int32,)
_ONES = {4: 0x11111111, 8: 0x01010101}
"""Bits of an integer -> a word with a one in each."""
_COLUMNS = [0, 4, 1, 5, 2, 6, 3, 7]
"""Nibble of AWQ's word that holds its first, second ... column."""


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Returns the integers in rows of words, the lowest bits first: (n, m) int32 -> (n, m * 32 / bits) uint8."""
    data = words.contiguous().view(torch.uint8)
    return data if bits == 8 else torch.stack((data & 15, data >> 4), -1).flatten(1)


def packed(parts: Parts, name: str) -> Weight:
    """Returns compressed-tensors' weight of which `name` is the packed integers, with an offset instead of a sign.

    Its zeros, if it has any, are packed along the rows; `_g_idx` gives each column's group if these are unsorted.

    Raises:
        UserError: the tensors do not go together, or `_shape` is not the weight's.
    """
    stem = name.removesuffix("_packed")
    stated, scales, zeros, order = f"{stem}_shape", f"{stem}_scale", f"{stem}_zero_point", f"{stem}_g_idx"
    at = parts.take(name, _WORD, 2)
    parts.require(parts.take(stated, (torch.int64, torch.int32), 1) == (2,), stated)
    shape = tuple(parts.get(stated).tolist())
    bits = next((b for b in (4, 8) if at == (shape[0], -(-shape[1] * b // 32))), 0)
    if not bits or min(shape) < 1:
        raise parts.misfit(f"{name!r} {list(at)} does not hold {list(shape)} in 4 or 8 bits")
    parts.take(scales, FLOATS, 2)
    block = block_of(parts, shape, scales)
    n_groups = parts.specs[scales].shape[1]
    if (found := parts.take_if_there(zeros, _WORD, 2)) is not None:
        parts.require(found == (-(-shape[0] * bits // 32), n_groups), zeros, scales)
    if (ordered := parts.take_if_there(order, _WORD, 1)) is not None:
        parts.require(ordered == shape[1:] and block[0] == 1, order, name)

    def load() -> Callable[[int, int], Tensor]:
        words, scale = parts.get(name), parts.get(scales).float()
        zero = torch.full_like(scale, 2.0 ** (bits - 1))
        if found:
            zero = _unpacked(parts.get(zeros).t(), bits).t()[: shape[0]].float()
        columns = _checked(parts, order, n_groups) if ordered else None

        def each(x: Tensor, start: int, stop: int) -> Tensor:
            if columns is None:
                return spread(x, block, start, stop=stop, n_columns=shape[1])
            return x[start:stop].index_select(1, columns)

        def rows(start: int, stop: int) -> Tensor:
            codes = _unpacked(words[start:stop], bits)[:, : shape[1]].float()
            return (codes - each(zero, start, stop)) * each(scale, start, stop)

        return rows

    return parts.weight(shape, by_rows(shape, load))


def gptq(parts: Parts, name: str) -> Weight:
    """Returns GPTQ's weight of which `name` is the integers, packed along the columns of a transposed matrix.

    In the first version of the format zeros are stored minus one, and the subtraction was of whole words, with
    borrows from one zero to the next.

    Raises:
        UserError: the tensors do not go together, or are in 2 or 3 bits.
    """
    stem = name.removesuffix("qweight")
    zeros, scales, order = f"{stem}qzeros", f"{stem}scales", f"{stem}g_idx"
    n_words, n_rows = parts.take(name, _WORD, 2)
    n_groups, n_scales = parts.take(scales, FLOATS, 2)
    (n_columns,) = parts.take(order, (torch.int32, torch.int64), 1)
    at = parts.take(zeros, _WORD, 2)
    bits = next((b for b in (4, 8) if n_words * 32 == n_columns * b), 0)
    parts.require(bits > 0, name, order)
    parts.require(n_scales == n_rows and at == (n_groups, -(-n_rows * bits // 32)), name, scales, zeros)
    less_one = _ONES[bits] if parts.settings.zeros_are_less_one else 0

    def load() -> Callable[[int, int], Tensor]:
        words, scale, columns = parts.get(name), parts.get(scales).float().t(), _checked(parts, order, n_groups)
        zero = _unpacked(parts.get(zeros) + less_one, bits)[:, :n_rows].float().t()  # int32 wraps around

        def rows(start: int, stop: int) -> Tensor:
            codes = _unpacked(words[:, start:stop].t(), bits).float()
            return (codes - zero[start:stop].index_select(1, columns)) * scale[start:stop].index_select(1, columns)

        return rows

    return parts.weight((n_rows, n_columns), by_rows((n_rows, n_columns), load))


def _checked(parts: Parts, order: str, n_groups: int) -> Tensor:
    """Returns the group of each column; raises UserError if there is no such group."""
    columns = parts.get(order).long()
    if columns.min() < 0 or columns.max() >= n_groups:
        raise parts.misfit(f"{order!r} names groups {columns.min()} to {columns.max()} of {n_groups}")
    return columns


def awq(parts: Parts, name: str) -> Weight:
    """Returns AWQ's weight of which `name` is the integers, packed along the rows of a transposed matrix (GEMM).

    Raises:
        UserError: the tensors do not go together.
    """
    stem = name.removesuffix("qweight")
    zeros, scales = f"{stem}qzeros", f"{stem}scales"
    n_columns, n_words = parts.take(name, _WORD, 2)
    n_groups, n_rows = parts.take(scales, FLOATS, 2)
    at = parts.take(zeros, _WORD, 2)
    parts.require(n_rows == n_words * 8 and n_columns % n_groups == 0, name, scales)
    parts.require(at == (n_groups, n_words), zeros, scales)

    def columns_of(words: Tensor) -> Tensor:
        return _unpacked(words, 4).view(len(words), -1, 8)[..., _COLUMNS].flatten(1).float()

    def load() -> Callable[[int, int], Tensor]:
        words, zero, scale = parts.get(name), columns_of(parts.get(zeros)), parts.get(scales).float()

        def rows(start: int, stop: int) -> Tensor:
            codes = columns_of(words[:, start // 8 : stop // 8]).view(n_groups, -1, stop - start)
            return ((codes - zero[:, None, start:stop]) * scale[:, None, start:stop]).flatten(0, 1).t()

        return rows

    return parts.weight((n_rows, n_columns), by_rows((n_rows, n_columns), load, multiple=8))
