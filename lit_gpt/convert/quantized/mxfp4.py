"""Experts in MXFP4, as gpt-oss has them: floats of 4 bits, a power of two for each block of 32.

Source: OCP Microscaling Formats (MX) Specification 1.0. Shapes: E experts, O rows of an expert's matrix, I columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_gpt.convert.quantized.parts import Parts, Weight, by_rows

BLOCKS = "_blocks"
_BLOCK = 32
_BIAS = 127
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7; from 8 on they are negative."""


def mxfp4(parts: Parts, name: str) -> Weight:
    """Returns the experts of which `name` is the codes, (E, I, O): transposed, as transformers has them in 16 bits.

    Raises:
        UserError: the tensors do not go together.
    """
    scales = f"{name.removesuffix(BLOCKS)}_scales"
    n_experts, n_rows, n_blocks, n_bytes = parts.take(name, (torch.uint8,), 4)
    parts.require(n_bytes * 2 == _BLOCK, name)
    parts.require(parts.take(scales, (torch.uint8,), 3) == (n_experts, n_rows, n_blocks), name, scales)
    flat = (n_experts * n_rows, n_blocks * _BLOCK)
    table = torch.tensor((*_VALUES, *(-x for x in _VALUES)))

    def load() -> Callable[[int, int], Tensor]:
        codes, exponents = (
            parts.get(name).view(flat[0], n_blocks, n_bytes),
            parts.get(scales).view(flat[0], n_blocks, 1),
        )

        def rows(start: int, stop: int) -> Tensor:
            some = codes[start:stop]
            values = table[torch.stack((some & 15, some >> 4), -1).flatten(2).int()]
            return torch.ldexp(values, exponents[start:stop].int() - _BIAS).flatten(1)

        return rows

    read = by_rows(flat, load)
    return parts.weight(
        (n_experts, flat[1], n_rows), lambda dtype: read(dtype).view(n_experts, n_rows, flat[1]).transpose(1, 2)
    )
