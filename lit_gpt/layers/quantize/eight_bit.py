"""Frozen weights in int8 or fp8 that are multiplied in 8 bits, without dequantizing them first.

A weight has one scale per output channel. Activations and gradients are quantized at each matmul, with one scale per
token. In x W^T both scales are constant along the sum, and are applied after it. In dy W the sum runs over the output
channels: their scales are multiplied into dy before dy is quantized, so that the same stored weight serves the forward
and the backward pass.

Shapes: N tokens, K channels that are summed over.
"""

import torch
from torch import Tensor, nn

from lit_gpt.layers.compiled import compiled_on_gpu
from lit_gpt.layers.cpu_matmul import linear_by_rows, matmul_by_rows, rows_of
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize.frozen import QuantizedLinear, frozen

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""8-bit dtype -> the code of the largest magnitude of a row."""
_SMALLEST_ABSMAX = 1e-30
"""Lower bound of a row's largest magnitude, so that a row of zeros is not divided by zero."""
_ROWS_AT_ONCE = 1024
"""Rows of a weight that are quantized at once, since all of it in fp32 would take several times its memory."""
_MULTIPLE, _FEWEST_ROWS = 16, 32
"""Row counts on a GPU: rows of zeros are added up to a multiple and a minimum, as `torch._int_mm` needs 17 rows."""


class EightBitLinear(QuantizedLinear):
    """A linear layer with 8-bit codes (out_features, in_features) and fp32 scales (out_features,)."""

    dtype: torch.dtype
    scale: Tensor

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__(linear)
        pieces = [round_rows(rows, self.dtype) for rows in linear.weight.detach().split(_ROWS_AT_ONCE)]
        codes, scales = zip(*pieces, strict=True)
        self.weight = frozen(torch.cat([c.view(torch.int8) for c in codes]).view(self.dtype))
        self.register_buffer("scale", torch.cat(scales).flatten())

    def rows(self, start: int, stop: int) -> Tensor:
        return self.weight[start:stop].float() * self.scale[start:stop].unsqueeze(1)

    def matmul_of_rows(self, x: Tensor) -> Tensor:
        codes, by_token = round_tokens(_padded(x), self.dtype)
        if self.has_matmul():
            y = self.gpu_matmul(codes, by_token, x.dtype)
        else:
            sums = linear_by_rows(codes, rows_of(self.weight), self.out_features, torch.float32)
            y = rescale(sums, by_token, self.scale, self.bias, x.dtype)
        return y[: x.size(0)]

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        codes, by_token = round_tokens(_padded(dy), self.dtype, self.scale)
        if self.has_matmul():
            dx = self.gpu_input_gradient(codes, by_token, dy.dtype)
        else:
            sums = matmul_by_rows(codes, rows_of(self.weight), self.in_features, torch.float32)
            dx = rescale(sums, by_token, None, None, dy.dtype)
        return dx[: dy.size(0)]

    def has_matmul(self) -> bool:
        """Returns whether the device is a GPU and has an 8-bit matmul for these sizes (all known models have such).

        On a CPU without AVX-512, `torch._int_mm` is 20 times slower than a matmul in fp32, which is used there instead.
        fp32 represents integers up to 2^24 exactly. Sums of random codes stay below that up to K = 100,000; larger
        sums have a relative rounding error of 2^-24.
        """
        return self.weight.is_cuda and self.in_features % _MULTIPLE == 0 and self.out_features % _MULTIPLE == 0

    def gpu_matmul(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns x W^T + bias in `dtype`, by a GPU's 8-bit matmul.

        Args:
            codes: (N, in_features), x quantized.
            by_token: scales of x, (N, 1).
        """
        raise NotImplementedError

    def gpu_input_gradient(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns dy W in `dtype`, by a GPU's 8-bit matmul.

        Args:
            codes: (N, out_features), dy times the scales of W, quantized.
            by_token: scales of the codes, (N, 1).
        """
        raise NotImplementedError


class Int8Linear(EightBitLinear):
    """A W8A8 linear layer: weights and activations in int8, summed in int32."""

    dtype = torch.int8

    def gpu_matmul(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        return rescale(torch._int_mm(codes, self.weight.t()), by_token, self.scale, self.bias, dtype)

    def gpu_input_gradient(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        return rescale(torch._int_mm(codes, column_major(self.weight)), by_token, None, None, dtype)


class Fp8Linear(EightBitLinear):
    """A linear layer with weights and activations in e4m3, summed in fp32; on a GPU, outputs are rounded to bf16.

    Gradients are quantized to e4m3 as well. With one scale for a whole tensor, e5m2 is usual for its larger range; with
    one scale per token the range of e4m3 is enough, and its additional bit of precision halves the error.
    """

    dtype = torch.float8_e4m3fn

    def gpu_matmul(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        y = _fp8_matmul(codes, self.weight.t(), by_token, self.scale.unsqueeze(0), use_fast_accum=True)
        return (y if self.bias is None else y + self.bias).to(dtype)

    def gpu_input_gradient(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        ones = by_token.new_ones(1, self.in_features)
        return _fp8_matmul(codes, column_major(self.weight), by_token, ones, use_fast_accum=False).to(dtype)


def round_rows(x: Tensor, dtype: torch.dtype, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantizes x (N, K) by row: returns codes (N, K) of `dtype` and fp32 scales (N, 1), with codes * scales about x.

    Args:
        channels: (K,), factors that x is multiplied by first.
    """
    h = x.float()
    if channels is not None:
        h = h * channels
    scale = h.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST_ABSMAX) / _LARGEST[dtype]
    h = h / scale
    if dtype == torch.int8:
        h = h.round()
    return h.clamp(-_LARGEST[dtype], _LARGEST[dtype]).to(dtype), scale


round_tokens = compiled_on_gpu(round_rows)


@compiled_on_gpu
def rescale(
    sums: Tensor, by_token: Tensor, by_channel: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Returns sums (N, M), the matmul of codes, times scales by token (N, 1) and by channel (M,), plus bias (M,)."""
    y = sums.float() * by_token
    if by_channel is not None:
        y = y * by_channel
    if bias is not None:
        y = y + bias
    return y.to(dtype)


@compiled_on_gpu
def transpose(codes: Tensor) -> Tensor:
    """Returns the transpose of int8 codes (N, K) as a contiguous copy, (K, N)."""
    return codes.t().contiguous()


def column_major(codes: Tensor) -> Tensor:
    """Returns a copy with contiguous columns, which a GPU's 8-bit matmul requires of its second factor.

    The copy is made for one matmul only, since keeping it would double the memory of the weight.
    """
    return transpose(codes.view(torch.int8)).view(codes.dtype).t()


def _padded(x: Tensor) -> Tensor:
    """Returns x with rows of zeros added, if it is on a GPU and has a number of rows that 8-bit matmuls do not take."""
    n = x.size(0)
    missing = max(_FEWEST_ROWS, -(-n // _MULTIPLE) * _MULTIPLE) - n
    if not x.is_cuda or missing == 0:
        return x
    return nn.functional.pad(x, (0, 0, 0, missing))


def _fp8_matmul(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, use_fast_accum: bool) -> Tensor:
    """Returns a @ b in bf16, (N, M), for e4m3 factors (N, K) and (K, M) with scales (N, 1) and (1, M), on a GPU.

    Args:
        use_fast_accum: accumulate in the tensor cores, with fewer bits than fp32.
    """
    return torch._scaled_mm(
        a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=use_fast_accum
    )
