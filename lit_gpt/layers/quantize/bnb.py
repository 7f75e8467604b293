"""Frozen weights in the formats of the package bitsandbytes, multiplied by its kernels.

Lightning Fabric's plugin for bitsandbytes swaps classes while a model is built, and works on a GPU only. It quantizes
by the same functions that are called here directly, and these work on a CPU, too.
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
from lit_gpt.layers.quantize.four_bits import FourBits
from lit_gpt.layers.quantize.frozen import QuantizedLinear, frozen


def package() -> ModuleType:
    """Imports and returns the package bitsandbytes.

    Raises:
        UserError: it, or a package that it needs, is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as e:
        raise UserError(f'--quantize bnb.* needs the package {e.name}; run: pip install -e ".[quantize]"') from e
    return bitsandbytes


class FourBitLinear(QuantizedLinear):
    """A linear layer with 4-bit weights: a weight is one of 16 values times an fp32 scale for its block of 64.

    Source: https://arxiv.org/abs/2305.14314 section 3. The matmul is that of bitsandbytes, which on a GPU multiplies
    few rows with the packed weight directly, and dequantizes the weight to the dtype of the input for many rows. On a
    CPU, matmuls in fp32 are our own: bitsandbytes would dequantize the whole weight there, which takes longer than the
    matmul with few rows.

    Args:
        values: nf4 (quantiles of a normal distribution) or fp4 (a float with 2 bits of exponent and 1 of mantissa).
        double: quantize the scales, too, to 8 bits (double quantization).
        kept: the weight in 4 bits already, of these values: its codes stay, and its scales unless they are quantized.
    """

    def __init__(self, linear: LinearLayer, values: str, double: bool, kept: FourBits | None = None) -> None:
        super().__init__(linear)
        if kept is None:
            weight, self.state = package().functional.quantize_4bit(
                linear.weight.detach().contiguous(), blocksize=64, quant_type=values, compress_statistics=double
            )
        else:
            device = linear.weight.device
            weight = kept.codes.reshape(-1, 1).to(device, copy=True)  # a copy, which keeps no mapped file in memory
            self.state = _state(kept, linear.weight, double)
        self.weight = frozen(weight)

    def matmul_of_rows(self, x: Tensor) -> Tensor:
        if in_fp32(x):
            rows = partial(self.rows_with_scales, self.scales())
            return linear_by_rows(x, rows, self.out_features, dtype=matmul_dtype(x), bias=self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return package().matmul_4bit(x, self.weight.t(), self.state, bias=bias)  # transposed for releases < 0.50

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        if in_fp32(dy):
            return matmul_by_rows(dy, partial(self.rows_with_scales, self.scales()), self.in_features, matmul_dtype(dy))
        return dy @ _unpacked(self.weight, self.state, dy.dtype).view(self.out_features, self.in_features)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.rows_with_scales(self.scales(), start, stop)

    def scales(self) -> Tensor:
        """Returns the scale of each block of weights, (blocks,) in fp32."""
        state = self.state
        if not state.nested:
            return state.absmax
        return package().functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset

    def rows_with_scales(self, scales: Tensor, start: int, stop: int) -> Tensor:
        """Returns rows start .. stop of W in fp32, given the result of `scales`, which several calls then share."""
        first, last = start * self.in_features, stop * self.in_features  # indices in the flattened weight
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


def _state(kept: FourBits, weight: Tensor, double: bool) -> Any:
    """Returns bitsandbytes' description of a weight in 4 bits, as `quantize_4bit` would.

    Args:
        weight: the weight that it stands for, with the shape, dtype and device of the layer's.
        double: whether to quantize the scales; as there, the mean is taken off first, and 256 share a scale.
    """
    functional = package().functional
    scales = kept.scales.reshape(-1).to(weight.device, torch.float32, copy=True)
    state = functional.QuantState(
        scales, weight.shape, kept.table.to(weight.device), kept.block, kept.values, weight.dtype
    )
    if double:
        state.offset = scales.mean()
        state.absmax, state.state2 = functional.quantize_blockwise(scales - state.offset, blocksize=256)
        state.nested = True
    return state


def _unpacked(weight: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """Returns the values of a 4-bit weight in `dtype`, flattened."""
    state = copy.copy(state)
    state.dtype = dtype
    return package().functional.dequantize_4bit(weight, state).flatten()


class OutlierInt8Linear(QuantizedLinear):
    """A linear layer with LLM.int8 weights, https://arxiv.org/abs/2208.07339.

    The matmul is in int8, with a scale for each token and each output channel, except for input channels that hold an
    outlier, which are multiplied in 16 bits. Activations are rounded to fp16 first, as in bitsandbytes.

    In Lightning, bnb.int8-training differs from bnb.int8 by weights that stay in 16 bits, so that they can train, and
    are quantized at each matmul. Frozen weights that are quantized once give the same outputs and gradients, so that
    both names mean this layer here.
    """

    OUTLIER = 6.0
    """Smallest magnitude of an activation that counts as an outlier."""
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
