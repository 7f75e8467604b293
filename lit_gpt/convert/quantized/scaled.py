"""Weights in 8 bits that are codes times scales: FP8 of fine-grained checkpoints, compressed-tensors, bitsandbytes.

Shapes: O out_features, I in_features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_gpt.convert.quantized.parts import FLOATS, Parts, Weight, by_rows
from lit_gpt.convert.quantized.settings import Block

_FP8 = (torch.float8_e4m3fn,)
_EXPONENTS = torch.float8_e8m0fnu
"""Dtype of scales that are powers of two."""
_LARGEST = 127.0


def fp8(parts: Parts, name: str) -> Weight:
    """Returns the weight of which `name` is the codes: FP8, `_scale_inv` with a scale a block.

    They are multiplied, whatever the name says: transformers' FineGrainedFP8, as DeepSeek publishes it.
    """
    return _scaled(parts, name, f"{name}_scale_inv", _FP8)


def compressed(parts: Parts, name: str) -> Weight:
    """Returns the weight of which `name` is the codes: FP8 or int8, `_scale` by matrix, row, group or block."""
    zeros = f"{name}_zero_point"
    if zeros in parts.specs:
        shape = parts.specs[zeros].shape
        parts.take(zeros, (torch.int8, *_FP8, *FLOATS), len(shape))
        if parts.get(zeros).float().count_nonzero():
            raise parts.misfit(f"{zeros!r} is not zero, which is read of packed weights only")
    return _scaled(parts, name, f"{name}_scale", (*_FP8, torch.int8))


def _scaled(parts: Parts, name: str, scales: str, dtypes: tuple[torch.dtype, ...]) -> Weight:
    shape = parts.take(name, dtypes, 2)
    at = parts.take(scales, (*FLOATS, _EXPONENTS), len(parts.specs[scales].shape))
    block = block_of(parts, shape, scales)

    def load() -> Callable[[int, int], Tensor]:
        codes, scale = parts.get(name), parts.get(scales).float().view(at if len(at) == 2 else (-1, 1))
        return lambda start, stop: (
            codes[start:stop].float() * spread(scale, block, start, stop=stop, n_columns=shape[1])
        )

    return parts.weight(shape, by_rows(shape, load))


def block_of(parts: Parts, shape: tuple[int, ...], scales: str) -> tuple[int, int]:
    """Returns rows and columns of the blocks that share a scale, by the shape of the scales.

    Raises:
        UserError: it is of none of the blocks that config.json states.
    """
    stated = parts.specs[scales].shape
    at = stated if len(stated) == 2 else (int(torch.Size(stated).numel()), 1)
    found = []
    for block in parts.settings.blocks:
        rows, columns = block.rows or shape[0], block.columns or shape[1]
        if at == (-(-shape[0] // rows), -(-shape[1] // columns)):
            found.append((min(rows, shape[0]), min(columns, shape[1])))
    if len(set(found)) != 1:
        sizes = ", ".join(map(_said, parts.settings.blocks)) or "none"
        raise parts.misfit(f"{scales!r} {list(stated)} are not the scales of {list(shape)} in blocks of {sizes}")
    return found[0]


def _said(block: Block) -> str:
    return f"{block.rows or 'all'} x {block.columns or 'all'}"


def spread(scale: Tensor, block: tuple[int, int], start: int, stop: int, n_columns: int) -> Tensor:
    """Returns the scale of each weight of rows start .. stop, or one that broadcasts to them.

    Args:
        scale: (number of blocks along O, along I), fp32.
        block: rows and columns of a block.
    """
    if scale.size(0) > 1:
        scale = scale.index_select(0, torch.arange(start, stop) // block[0])
    return scale if scale.size(1) == 1 else scale.repeat_interleave(block[1], 1)[:, :n_columns]


def eight_bits(parts: Parts, name: str) -> Weight:
    """Returns the weight of which `name` is the codes: int8, `SCB` with the largest magnitude of each row (LLM.int8).

    Raises:
        UserError: the codes are not in the order of rows.
    """
    scales, order = f"{name.removesuffix('weight')}SCB", f"{name}_format"
    shape = parts.take(name, (torch.int8,), 2)
    parts.require(parts.take(scales, (torch.float32,), 1) == shape[:1], name, scales)
    if order in parts.specs:
        parts.take(order, (torch.uint8,), len(parts.specs[order].shape))
        if parts.get(order).count_nonzero():
            raise parts.misfit(f"{order!r} is {parts.get(order).tolist()}, not the order of rows (0)")

    def load() -> Callable[[int, int], Tensor]:
        codes, scale = parts.get(name), parts.get(scales).unsqueeze(1) / _LARGEST
        return lambda start, stop: codes[start:stop].float() * scale[start:stop]

    return parts.weight(shape, by_rows(shape, load))
