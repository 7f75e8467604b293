"""Weights in bitsandbytes' 4 bits outside of a layer: codes of 16 values, and a scale for each block of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

# fmt: off
VALUES = {
    "nf4": (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    "fp4": (0.0, 0.0052083334885537624, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25,
            0.0, -0.0052083334885537624, -2 / 3, -1.0, -1 / 3, -0.5, -1 / 6, -0.25),
}
# fmt: on
"""Kind of values -> the value of each code. nf4 has quantiles of a normal distribution (https://arxiv.org/abs/2305.14314
appendix E), fp4 floats with 2 bits of exponent and 1 of mantissa, in the order that bitsandbytes gives them."""
_STEP = 2**21
"""Number of values that are dequantized at a time, since each takes several copies in fp32."""


@dataclass(frozen=True)
class FourBits:
    """A weight in 4 bits, as codes and scales."""

    codes: Tensor
    """uint8, two codes a byte, the first of them in its high nibble; (O, I / 2) of a weight (O, I), or flat."""
    scales: Tensor
    """fp32, one for each block of consecutive weights; (O, I / block), or flat."""
    block: int
    """Number of consecutive weights that share a scale; it is even."""
    table: Tensor
    """The value of each code, fp32 (16,)."""
    values: str = ""
    """Key of VALUES whose values the table has, if it is one of them."""

    def dequantize(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns the weight, which has this shape, rounded once from fp32 to `dtype`."""
        out = torch.empty(shape, dtype=dtype)
        flat, codes, scales = out.view(-1), self.codes.reshape(-1), self.scales.reshape(-1)
        pairs = torch.stack((self.table.repeat_interleave(16), self.table.repeat(16)), 1)  # the two values of a byte
        step = max(1, _STEP // self.block) * self.block
        for start in range(0, flat.numel(), step):
            stop = min(start + step, flat.numel())
            found = pairs.index_select(0, codes[start // 2 : -(-stop // 2)].int()).view(-1)
            by = scales[start // self.block : -(-stop // self.block)]
            whole = (stop - start) // self.block * self.block
            found[:whole].view(-1, self.block).mul_(by[: whole // self.block, None])
            found[whole:] *= by[-1]
            flat[start:stop] = found[: stop - start]
        return out
