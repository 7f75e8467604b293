"""Frozen weights in int8 or fp8 that are multiplied as such, not turned back into 16 bits first.

A weight has one scale for each output channel. What it meets, activations or gradients, is rounded when it comes, with
one scale for each token. In the product x W^T both scales are constant along the sum and go outside of it. In dy W the
sum runs over the output channels: their scales go into dy before that is rounded, so that the same stored weight
serves both directions.

Letters: N tokens, K channels that are summed over.
"""

import torch
from torch import Tensor, nn

from lit_gpt.layers.compiled import compiled_on_gpu
from lit_gpt.layers.cpu_matmul import linear_by_rows, matmul_by_rows, rows_of
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize.frozen import QuantizedLinear, frozen

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The value that a row's largest magnitude becomes."""
_SMALLEST_ABSMAX = 1e-30
"""Rows below become zeros instead of dividing by zero."""
_ROWS_AT_ONCE = 1024
"""Of a weight, when it is rounded: in fp32 all of it would be several times its size."""
_MULTIPLE, _FEWEST_ROWS = 16, 32
"""On a GPU: rows are filled up to such a number with zeros. `torch._int_mm` takes no fewer than 17."""


class EightBitLinear(QuantizedLinear):
    """What int8 and fp8 share: codes (out_features, in_features), and fp32 scales (out_features,)."""

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
        codes, by_token = round_tokens(_filled_up(x), self.dtype)
        if self.has_matmul():
            y = self.multiplied(codes, by_token, x.dtype)
        else:
            sums = linear_by_rows(codes, rows_of(self.weight), self.out_features, torch.float32)
            y = rescale(sums, by_token, self.scale, self.bias, x.dtype)
        return y[: x.size(0)]

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        codes, by_token = round_tokens(_filled_up(dy), self.dtype, self.scale)
        if self.has_matmul():
            dx = self.multiplied_back(codes, by_token, dy.dtype)
        else:
            sums = matmul_by_rows(codes, rows_of(self.weight), self.in_features, torch.float32)
            dx = rescale(sums, by_token, None, None, dy.dtype)
        return dx[: dy.size(0)]

    def has_matmul(self) -> bool:
        """Whether the device multiplies 8 bits in these sizes; no model that we know has others.

        A CPU's `torch._int_mm` is 20 times slower than fp32 unless it has AVX512. fp32 holds integers up to 2^24
        exactly, which sums of random codes do not reach below K of 100,000; larger ones are rounded by 2^-24.
        """
        return self.weight.is_cuda and self.in_features % _MULTIPLE == 0 and self.out_features % _MULTIPLE == 0

    def multiplied(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        """What the codes (N, in_features) with scales (N, 1) stand for, times W^T, plus bias, by a GPU's products."""
        raise NotImplementedError

    def multiplied_back(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        """The same of codes (N, out_features) that the scales of W are in already, times W."""
        raise NotImplementedError


class Int8Linear(EightBitLinear):
    """W8A8: both factors in int8, summed in int32."""

    dtype = torch.int8

    def multiplied(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        return rescale(torch._int_mm(codes, self.weight.t()), by_token, self.scale, self.bias, dtype)

    def multiplied_back(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        return rescale(torch._int_mm(codes, column_major(self.weight)), by_token, None, None, dtype)


class Fp8Linear(EightBitLinear):
    """Both factors in e4m3, summed in fp32; on a GPU the sums come out in bf16, whatever the dtype of the input.

    Gradients are rounded to e4m3, too, and not to e5m2, as is usual where one scale serves a whole tensor: with a scale
    for each token the range of e4m3 is enough, and its one bit more of precision halves the error.
    """

    dtype = torch.float8_e4m3fn

    def multiplied(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        y = _fp8_matmul(codes, self.weight.t(), by_token, self.scale.unsqueeze(0), use_fast_accum=True)
        return (y if self.bias is None else y + self.bias).to(dtype)

    def multiplied_back(self, codes: Tensor, by_token: Tensor, dtype: torch.dtype) -> Tensor:
        ones = by_token.new_ones(1, self.in_features)
        return _fp8_matmul(codes, column_major(self.weight), by_token, ones, use_fast_accum=False).to(dtype)


def round_rows(x: Tensor, dtype: torch.dtype, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (N, K) of `dtype` and fp32 scales (N, 1), so that their product is about x, (N, K).

    Args:
        channels: (K,), is multiplied into x first.
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
    """Sums of products of codes (N, M) times the scales (N, 1) and (M,), plus bias (M,)."""
    y = sums.float() * by_token
    if by_channel is not None:
        y = y * by_channel
    if bias is not None:
        y = y + bias
    return y.to(dtype)


@compiled_on_gpu
def transpose(codes: Tensor) -> Tensor:
    """(N, K) int8 -> (K, N), copied."""
    return codes.t().contiguous()


def column_major(codes: Tensor) -> Tensor:
    """The same matrix with its columns contiguous, as the GPU's 8-bit products want their second factor.

    It is a copy that lives for one product: kept, it would double the memory of the weight.
    """
    return transpose(codes.view(torch.int8)).view(codes.dtype).t()


def _filled_up(x: Tensor) -> Tensor:
    """x with rows of zeros below, if it is on a GPU and has a number of rows that its 8-bit products do not take."""
    n = x.size(0)
    missing = max(_FEWEST_ROWS, -(-n // _MULTIPLE) * _MULTIPLE) - n
    if not x.is_cuda or missing == 0:
        return x
    return nn.functional.pad(x, (0, 0, 0, missing))


def _fp8_matmul(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, use_fast_accum: bool) -> Tensor:
    """(N, K) and (K, M) of e4m3 with scales (N, 1) and (1, M) -> (N, M) in bf16, on a GPU.

    Args:
        use_fast_accum: sum in the tensor cores' own registers, which have fewer bits than fp32.
    """
    return torch._scaled_mm(
        a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=use_fast_accum
    )
