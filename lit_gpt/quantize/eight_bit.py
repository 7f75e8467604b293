"""Frozen weights in int8 or fp8 that are multiplied as such, not turned back into 16 bits first.

A weight has one scale for each output channel. What it meets, activations or gradients, is rounded when it comes, with
one scale for each token. In the product x W^T both scales are constant along the sum and go outside of it. In dy W the
sum runs over the output channels: their scales go into dy before that is rounded, so that the same stored weight
serves both directions.

Letters: N tokens, K channels that are summed over.
"""

import torch
from torch import Tensor, nn

from lit_gpt.fused import fused
from lit_gpt.linear import LinearLayer
from lit_gpt.quantize.frozen import QuantizedLinear, frozen

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The value that a row's largest magnitude becomes."""
SMALLEST_ABSMAX = 1e-30
"""Rows below become zeros instead of dividing by zero."""
ROWS_AT_ONCE = 1024
"""Of a weight, when it is rounded: in fp32 all of it would be several times its size."""
MULTIPLE, FEWEST_ROWS = 16, 32
"""On a GPU: rows are filled up to such a number with zeros. `torch._int_mm` takes no fewer than 17."""


class EightBitLinear(QuantizedLinear):
    """What int8 and fp8 share: codes (out_features, in_features), and fp32 scales (out_features,)."""

    dtype: torch.dtype

    def __init__(self, linear: LinearLayer) -> None:
        super().__init__(linear)
        pieces = [round_rows(rows, self.dtype) for rows in linear.weight.detach().split(ROWS_AT_ONCE)]
        codes, scales = zip(*pieces, strict=True)
        self.weight = frozen(torch.cat([c.view(torch.int8) for c in codes]).view(self.dtype))
        self.register_buffer("scale", torch.cat(scales).flatten())

    def dequantize(self) -> Tensor:
        return self.weight.float() * self.scale.unsqueeze(1)


class Int8Linear(EightBitLinear):
    """W8A8: both factors in int8, summed in int32."""

    dtype = torch.int8

    def product_of_rows(self, x: Tensor) -> Tensor:
        codes, by_token = round_tokens(filled_up(x), self.dtype)
        sums = int8_product(codes, self.weight.t())
        return rescale(sums, by_token, self.scale, self.bias, x.dtype)[: x.size(0)]

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        codes, by_token = round_tokens(filled_up(dy), self.dtype, self.scale)
        sums = int8_product(codes, column_major(self.weight))
        return rescale(sums, by_token, None, None, dy.dtype)[: dy.size(0)]


class Fp8Linear(EightBitLinear):
    """Both factors in e4m3, summed in fp32; on a GPU the sums come out in bf16, whatever the dtype of the input.

    Gradients are rounded to e4m3, too, and not to e5m2, as is usual where one scale serves a whole tensor: with a scale
    for each token the range of e4m3 is enough, and its one bit more of precision halves the error.
    """

    dtype = torch.float8_e4m3fn

    def product_of_rows(self, x: Tensor) -> Tensor:
        codes, by_token = round_tokens(filled_up(x), self.dtype)
        y = fp8_product(codes, self.weight.t(), by_token, self.scale.unsqueeze(0), use_fast_accum=True)[: x.size(0)]
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def input_gradient_of_rows(self, dy: Tensor) -> Tensor:
        codes, by_token = round_tokens(filled_up(dy), self.dtype, self.scale)
        ones = by_token.new_ones(1, self.in_features)
        dx = fp8_product(codes, column_major(self.weight), by_token, ones, use_fast_accum=False)
        return dx[: dy.size(0)].to(dy.dtype)


def round_rows(x: Tensor, dtype: torch.dtype, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (N, K) of `dtype` and fp32 scales (N, 1), so that their product is about x, (N, K).

    Args:
        channels: (K,), is multiplied into x first.
    """
    h = x.float()
    if channels is not None:
        h = h * channels
    scale = h.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ABSMAX) / LARGEST[dtype]
    h = h / scale
    if dtype == torch.int8:
        h = h.round()
    return h.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype), scale


round_tokens = fused(round_rows)


@fused
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


@fused
def transpose(codes: Tensor) -> Tensor:
    """(N, K) int8 -> (K, N), copied."""
    return codes.t().contiguous()


def column_major(codes: Tensor) -> Tensor:
    """The same matrix with its columns contiguous, as the GPU's 8-bit products want their second factor.

    It is a copy that lives for one product: kept, it would double the memory of the weight.
    """
    if not codes.is_cuda:
        return codes
    return transpose(codes.view(torch.int8)).view(codes.dtype).t()


def filled_up(x: Tensor) -> Tensor:
    """x with rows of zeros below, if it is on a GPU and has a number of rows that its 8-bit products do not take."""
    n = x.size(0)
    missing = max(FEWEST_ROWS, -(-n // MULTIPLE) * MULTIPLE) - n
    if not x.is_cuda or missing == 0:
        return x
    return nn.functional.pad(x, (0, 0, 0, missing))


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """(N, K) and (K, M) int8 -> (N, M) int32, or the same numbers in fp32 where there is no fast int8 product.

    A CPU's `torch._int_mm` is 20 times slower than fp32 unless it has AVX512. fp32 holds integers up to 2^24 exactly,
    which sums of random codes do not reach below K of 100,000; larger ones are rounded by 2^-24.
    """
    if a.is_cuda and fits(b):
        return torch._int_mm(a, b)
    return a.float() @ b.float()


def fp8_product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, use_fast_accum: bool) -> Tensor:
    """(N, K) and (K, M) of e4m3 with scales (N, 1) and (1, M) -> (N, M), bf16 on a GPU and fp32 elsewhere.

    Args:
        use_fast_accum: sum in the tensor cores' own registers, which have fewer bits than fp32.
    """
    if a.is_cuda and fits(b):
        return torch._scaled_mm(
            a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=use_fast_accum
        )
    return (a.float() @ b.float()) * scale_a * scale_b


def fits(b: Tensor) -> bool:
    """Whether the GPU's 8-bit products take the second factor; no model that we know has other sizes."""
    return b.size(0) % MULTIPLE == 0 and b.size(1) % MULTIPLE == 0
