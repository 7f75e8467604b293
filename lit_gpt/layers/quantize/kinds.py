"""The kinds of quantized weights that --quantize names: how to make a layer, its bytes, and its training speed.

LoRA on the 4-bit kinds is QLoRA (https://arxiv.org/abs/2305.14314).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize.bnb import FourBitLinear, OutlierInt8Linear
from lit_gpt.layers.quantize.eight_bit import Fp8Linear, Int8Linear
from lit_gpt.layers.quantize.frozen import QuantizedLinear

_BLOCK, _NESTED_BLOCK = 64, 256
"""Numbers of weights that share a scale, and of scales that share a second one, in bitsandbytes' 4-bit formats."""


class Kind(NamedTuple):
    """A kind of quantized weights."""

    make: Callable[[LinearLayer], QuantizedLinear]
    """Function that makes the quantized layer that replaces a linear layer."""
    n_bytes: Callable[[LinearLayer], int]
    """Function that returns the bytes of the quantized weight of a linear layer, without its bias."""
    speed: float
    """Speed of a training step relative to bf16 weights. Those of nf4, int8 and fp8 were measured on an H100
    (benchmarks/results/gpu.txt); the others are estimates."""


def _four_bit_bytes(layer: LinearLayer, double: bool) -> int:
    n = layer.in_features * layer.out_features
    n_scales, table = -(-n // _BLOCK), 16 * 4
    if double:
        return -(-n // 2) + n_scales + 4 * -(-n_scales // _NESTED_BLOCK) + 256 * 4 + 4 + table
    return -(-n // 2) + 4 * n_scales + table


def _eight_bit_bytes(layer: LinearLayer) -> int:
    return layer.in_features * layer.out_features + 4 * layer.out_features


def _four_bit(values: str, double: bool, speed: float) -> Kind:
    make = partial(FourBitLinear, values=values, double=double)
    return Kind(make, partial(_four_bit_bytes, double=double), speed)


QUANTIZATIONS: dict[str, Kind] = {
    "bnb.nf4": _four_bit("nf4", double=False, speed=0.94),
    "bnb.nf4-dq": _four_bit("nf4", double=True, speed=0.92),
    "bnb.fp4": _four_bit("fp4", double=False, speed=0.94),
    "bnb.fp4-dq": _four_bit("fp4", double=True, speed=0.92),
    "bnb.int8": Kind(OutlierInt8Linear, _eight_bit_bytes, 0.6),
    "bnb.int8-training": Kind(OutlierInt8Linear, _eight_bit_bytes, 0.6),
    "int8": Kind(Int8Linear, _eight_bit_bytes, 0.97),
    "fp8": Kind(Fp8Linear, _eight_bit_bytes, 1.25),
}
"""Value of --quantize (`lit_gpt.args.Quantization` has the same names) -> the kind."""
