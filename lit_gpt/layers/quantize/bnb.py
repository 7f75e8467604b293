"""Frozen weights as the package bitsandbytes stores them, multiplied by its kernels.

Lightning Fabric's plugin swaps classes while a model is built, and works on a GPU only. What it leaves in a model are
weights that the functions used here have quantized, and these work on a CPU, too.
"""

import copy
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.layers.cpu_matmul import in_fp32, linear_by_rows, matmul_by_rows, matmul_dtype
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize.frozen import QuantizedLinear, frozen


def package() -> ModuleType:
    """bitsandbytes. Raises: UserError if it is not installed."""
    try:
        import bitsandbytes
    except ImportError as e:
        raise UserError(f'--quantize bnb.* needs the package {e.name}; run: pip install -e ".[quantize]"') from e
    return bitsandbytes


class FourBitLinear(QuantizedLinear):
    """Blocks of 64 weights share an fp32 scale, each weight is one of 16 values times it.

    https://arxiv.org/abs/2305.14314 section 3. The product is bitsandbytes' own: on a GPU it multiplies few rows
    directly with the packed weight, and unpacks it into the dtype of the input for many. On a CPU it is ours where it
    is made in fp32: theirs unpacks all of the weight there, which takes longer than the product with few rows.

    Args:
        values: nf4 (quantiles of a normal distribution) or fp4 (a float with 2 bits of exponent and 1 of mantissa).
        double: store the scales in 8 bits, too.
    """

    def __init__(self, linear: LinearLayer, values: str, double: bool) -> None:
        super().__init__(linear)
        weight, self.state = package().functional.quantize_4bit(
            linear.weight.detach().contiguous(), blocksize=64, quant_type=values, compress_statistics=double
        )
        self.weight = frozen(weight)

    def matmul_of_rows(self, x: Tensor) -> Tensor:
        if in_fp32(x):
            rows = partial(self.part, self.scales())
            return linear_by_rows(x, rows, self.out_features, dtype=matmul_dtype(x), bias=self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return package().matmul_4bit(x, self.weight.t(), self.state, bias=bias)  # transposed for releases < 0.50

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        if in_fp32(dy):
            return matmul_by_rows(dy, partial(self.part, self.scales()), self.in_features, matmul_dtype(dy))
        return dy @ _unpacked(self.weight, self.state, dy.dtype).view(self.out_features, self.in_features)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.part(self.scales(), start, stop)

    def scales(self) -> Tensor:
        """Of the blocks, (blocks,) in fp32."""
        state = self.state
        if not state.nested:
            return state.absmax
        return package().functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset

    def part(self, scales: Tensor, start: int, stop: int) -> Tensor:
        """As `rows`."""
        first, last = start * self.in_features, stop * self.in_features  # of the weights, one after the other
        block = self.state.blocksize
        begin, end = first // block * block, min(-(-last // block) * block, self.out_features * self.in_features)
        state = copy.copy(self.state)
        state.nested, state.absmax = False, scales[begin // block : -(-end // block)]
        state.shape = torch.Size((end - begin,))
        values = _unpacked(self.weight[begin // 2 : -(-end // 2)], state, torch.float32)
        return values[first - begin : last - begin].view(-1, self.in_features)

    def _apply(self, *args, **kwargs) -> "FourBitLinear":
        super()._apply(*args, **kwargs)
        self.state.to(self.weight.device)
        return self


def _unpacked(weight: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """All values of a weight in 4 bits, one after the other."""
    state = copy.copy(state)
    state.dtype = dtype
    return package().functional.dequantize_4bit(weight, state).flatten()


class OutlierInt8Linear(QuantizedLinear):
    """LLM.int8, https://arxiv.org/abs/2208.07339: int8 by token and output channel, but 16 bits for the channels of the
    input that hold an outlier.

    Activations are rounded to fp16 on the way, as bitsandbytes does it. In Lightning, bnb.int8-training differs from
    bnb.int8 by weights that stay in 16 bits, so that they can train, and are rounded at each product. Weights that do
    not train give the same outputs and gradients from codes made once, so that both names stand for this layer.
    """

    OUTLIER = 6.0
    """Magnitude from which an activation is one."""
    LARGEST = 127.0

    absmax: Tensor

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__(linear)
        codes, absmax, _ = package().functional.int8_vectorwise_quant(linear.weight.detach().half())
        self.weight = frozen(codes)
        self.register_buffer("absmax", absmax)  # (out_features,)

    def matmul_of_rows(self, x: Tensor) -> Tensor:
        state = package().MatmulLtState()
        state.has_fp16_weights = state.is_training = False
        state.CB, state.SCB = self.weight, self.absmax
        y = package().matmul(x.half(), self.weight, state=state, threshold=self.OUTLIER).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        if in_fp32(dy):
            return matmul_by_rows(dy, self.rows, self.in_features, matmul_dtype(dy))
        return dy @ self.weight.to(dy.dtype).mul_(self.absmax.unsqueeze(1) / self.LARGEST)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.weight[start:stop].float() * (self.absmax[start:stop].unsqueeze(1) / self.LARGEST)
