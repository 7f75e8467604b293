"""The product of a LoRA layer and its gradients, which keep little for the backward pass.

Letters: N tokens, s scale of the updates, r their rank, R rank of what is computed with (r, or 2 r with a start).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from lit_gpt.dropout import add_dropped, dropped
from lit_gpt.lean import save, saved
from lit_gpt.matmul import add_matmul, as_they_are, matmul

if TYPE_CHECKING:
    from lit_gpt.lora.layer import LoRALinear

SMALLEST_NORM = 1e-30
"""Of a channel's weights: rows of zeros, as a padded vocabulary has them, stay zeros."""


class LoRAProduct(Function):
    """The product with the frozen weight, and the updates added to it in place.

    For the backward pass it keeps x, or what x is made of, and h = A x, which has few channels. With magnitudes, it
    makes the product once more, which keeping would cost as much memory as the output has.

    Args:
        x: (..., in_features).
        layer: whose weight, blocks and scale are used.
        p: probability that a channel of a token is dropped on its way to A.
        trained: its A, one a block, then its B, then its magnitudes, if it has any.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: "LoRALinear", p: float, *trained: Tensor) -> Tensor:
        y = layer.linear.product(x)
        rows, out = x.flatten(0, -2), y.flatten(0, -2)  # (N, in_features), (N, out_features); out shares y's memory
        A, Bs = factors(layer, trained, y.dtype)
        seed = torch.randint(2**31 - 1, (1,), device=x.device) if p else None
        h = matmul((dropped(rows, seed, p) if p else rows).to(y.dtype), A.T)  # (N, blocks * R)
        norms = channel_norms(layer, A, Bs) if len(layer.lora_magnitude) else []
        Bs = scale_channels(layer, out, Bs, norms, trained)
        for (start, stop), B, part in zip(layer.blocks, Bs, h.split(Bs[0].size(1), 1), strict=True):
            add_matmul(out[:, start:stop], part, B.T, layer.scaling)
        ctx.layer, ctx.p, ctx.shape, ctx.dtype, ctx.n_norms = layer, p, x.shape, x.dtype, len(norms)
        ctx.autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        save(ctx, x, h, *([seed] if p else []), *norms, *trained)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *rest = saved(ctx)
        layer, p, r = ctx.layer, ctx.p, ctx.layer.lora_A[0].size(0)
        seed = rest.pop(0) if p else None
        norms, trained = rest[: ctx.n_norms], rest[ctx.n_norms :]
        rows, d_out = x.flatten(0, -2), dy.flatten(0, -2)
        A, Bs = factors(layer, trained, dy.dtype)
        parts = h.split(Bs[0].size(1), 1)
        dms = []
        if norms:
            with torch.autocast(x.device.type, dy.dtype) if ctx.autocast else nullcontext():
                d_out, dms = magnitude_gradients(layer, rows, d_out, parts, Bs, norms, trained)
        d_blocks = [d_out[:, start:stop] for start, stop in layer.blocks]
        dBs = [matmul(d.T, part[:, :r]).float() * layer.scaling for d, part in zip(d_blocks, parts, strict=True)]
        dh = torch.cat([matmul(d, B) for d, B in zip(d_blocks, Bs, strict=True)], 1) * layer.scaling  # (N, blocks * R)
        dA = matmul(dh.T, (dropped(rows, seed, p) if p else rows).to(dy.dtype))
        dAs = [dA_of_block[:r] for dA_of_block in dA.float().split(Bs[0].size(1))]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = layer.linear.input_gradient(d_out)
            if p:
                dx = add_dropped(dx, matmul(dh, A), seed, p)
            else:
                add_matmul(dx, dh, A, 1.0)
            dx = dx.to(ctx.dtype).view(ctx.shape)
        return dx, None, None, *dAs, *dBs, *dms


def factors(layer: "LoRALinear", trained: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """All A in one, (blocks * R, in_features), and the B, (channels of the block, R) each, in `dtype`."""
    n = len(layer.blocks)
    As, Bs = trained[:n], trained[n : 2 * n]
    if layer.lora_A_start is not None:
        A_starts = layer.lora_A_start.split(As[0].size(0))
        B_starts = layer.lora_B_start.split([B.size(0) for B in Bs])
        As = [x for pair in zip(As, A_starts, strict=True) for x in pair]
        Bs = [torch.cat((B, -start), 1) for B, start in zip(Bs, B_starts, strict=True)]
    return torch.cat(tuple(As)).to(dtype), [B.to(dtype) for B in Bs]


def channel_norms(layer: "LoRALinear", A: Tensor, Bs: list[Tensor]) -> list[Tensor]:
    """|W + s B A| of each adapted channel, (channels of the block,), fp32; makes no matrix of the weight's size.

    For a row w of W and b of B the square is |w|^2 + 2 s b A w + s^2 b A A^T b^T.
    """
    crossed = layer.linear.product(A)  # (blocks * R, out_features)
    if layer.linear.bias is not None:
        crossed = crossed - layer.linear.bias
    norms, R, s = [], Bs[0].size(1), layer.scaling
    with as_they_are(A):
        for a, a_w, B, (start, stop) in zip(A.split(R), crossed.split(R), Bs, layer.blocks, strict=True):
            a, b = a.float(), B.float()
            update = 2 * s * (b * a_w[:, start:stop].float().T).sum(1) + s * s * ((b @ (a @ a.T)) * b).sum(1)
            squared = (layer.squared_norms[start:stop] + update).clamp(min=0)
            norms.append(squared.sqrt().clamp(min=SMALLEST_NORM))
    return norms


def scale_channels(
    layer: "LoRALinear", out: Tensor, Bs: list[Tensor], norms: list[Tensor], trained: Sequence[Tensor]
) -> list[Tensor]:
    """Bring the frozen product in `out` (N, out_features), bias excepted, to its magnitudes; returns B scaled alike."""
    scaled = list(Bs)
    for i, (norm, m, (start, stop)) in enumerate(zip(norms, trained[-len(norms) :], layer.blocks, strict=False)):
        part, scale = out[:, start:stop], m / norm
        bias = layer.linear.bias
        product = part if bias is None else part - bias[start:stop]
        part.addcmul_(product, (scale - 1).to(out.dtype))  # a factor of exactly 1 leaves all bits alone
        scaled[i] = Bs[i] * scale.to(out.dtype).unsqueeze(1)
    return scaled


def magnitude_gradients(
    layer: "LoRALinear",
    rows: Tensor,
    d_out: Tensor,
    parts: Sequence[Tensor],
    Bs: list[Tensor],
    norms: list[Tensor],
    trained: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of what the magnitudes scale, (N, out_features), and the magnitudes' own."""
    z, d_out, dms = layer.linear.product(rows), d_out.clone(), []
    for norm, m, B, h, (start, stop) in zip(norms, trained[-len(norms) :], Bs, parts, layer.blocks, strict=True):
        unscaled, d = z[:, start:stop], d_out[:, start:stop]
        if layer.linear.bias is not None:
            unscaled = (unscaled - layer.linear.bias[start:stop]).to(h.dtype)  # autocast leaves a bias in fp32
        add_matmul(unscaled, h, B.T, layer.scaling)
        dms.append((d * unscaled).sum(0, dtype=torch.float32) / norm)
        d.mul_((m / norm).to(d.dtype))
    return d_out, dms
