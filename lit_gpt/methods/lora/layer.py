"""A linear layer with low-rank updates: its parameters, its matmul and gradients, and the weight it merges to.

Letters: N tokens, s scale of the updates, r their rank, R rank of what is computed with (r, or 2 r with a start).
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.args import LoRAArgs
from lit_gpt.errors import UserError
from lit_gpt.layers.cpu_matmul import add_matmul, as_they_are, matmul
from lit_gpt.layers.dropout import add_dropped, dropped
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.layers.recompute import save, saved

_OVERSAMPLING, _ITERATIONS = 8, 16
"""Of the randomized SVD (https://arxiv.org/abs/0909.4061 algorithm 4.4)."""
SMALLEST_NORM = 1e-30
"""Of a channel's weights: rows of zeros, as a padded vocabulary has them, stay zeros."""


class LoRALinear(nn.Module):
    """A frozen linear layer plus one low-rank update per block of its output channels.

    The updates are fp32 whatever the layer's dtype, since small steps on 16-bit weights get lost in rounding; they are
    multiplied in the dtype of the output.

    PiSSA (https://arxiv.org/abs/2404.02948) trains the principal part of W and freezes the rest, W - s B0 A0. Here W
    stays as it is, and its principal part is taken off on the fly: W x + s (B A - B0 A0) x is the same function with
    the same gradients, begins exactly at the base, and loses nothing to a rounded rest. A0 and B0 are saved with A, B.

    DoRA (https://arxiv.org/abs/2402.09353) gives each output channel a trained magnitude m:
    y = m / |W + s B A| (W x + s B A x), where the norm over the channel's weights counts as a constant.

    Attributes:
        kept_values: what it keeps of each token for the backward pass, besides its input.
        flops_besides: operations on a token, forward and backward, besides the products with its parameters.

    Args:
        linear: the layer to wrap.
        args: rank, scale, dropout, and which variant.
        blocks: (start, stop) of the output channels that get an update; None is one block, all of them.
        init: give the updates their first values. False leaves out PiSSA's, whose search takes long, and whose place
            those of a run are to take.

    Raises:
        UserError: PiSSA is to begin on quantized weights.
    """

    lora_A_start: Tensor | None
    lora_B_start: Tensor | None

    def __init__(
        self, linear: LinearLayer, args: LoRAArgs, blocks: list[tuple[int, int]] | None = None, init: bool = True
    ) -> None:
        super().__init__()
        self.linear = linear
        self.blocks = blocks or [(0, linear.out_features)]
        self.scaling = args.scaling
        self.dropout = args.lora_dropout
        like = {"device": linear.weight.device, "dtype": torch.float32}
        sizes = [stop - start for start, stop in self.blocks]
        self.lora_A = _parameters([(args.lora_r, linear.in_features) for _ in sizes], like)
        self.lora_B = _parameters([(n, args.lora_r) for n in sizes], like)
        self.lora_magnitude = _parameters([(n,) for n in sizes] if args.lora_dora else [], like)
        for B in self.lora_B:
            B.lr_factor = args.lora_plus_ratio  # https://arxiv.org/abs/2402.12354; read where the optimizer is made
        n_start = args.lora_r * len(sizes) if args.lora_init == "pissa" else 0
        for name, shape in (("A", (n_start, linear.in_features)), ("B", (sum(sizes), args.lora_r))):
            self.register_buffer(f"lora_{name}_start", torch.zeros(shape, **like) if n_start else None)
        self.register_buffer("squared_norms", None, persistent=False)  # (out_features,), of the frozen weights
        self.kept_values = args.lora_r * len(sizes) + n_start
        again = 2 * linear.in_features * linear.out_features if args.lora_dora else 0
        self.flops_besides = again + (6 * linear.in_features * n_start + 4 * sum(sizes) * args.lora_r * bool(n_start))
        self.reset_parameters(init)

    @torch.no_grad()
    def reset_parameters(self, init: bool = True) -> None:
        """First values, with which the layer computes what it did before."""
        for A, B in zip(self.lora_A, self.lora_B, strict=True):
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as nn.Linear does, and as the paper's own code
            nn.init.zeros_(B)
        if self.lora_A_start is not None and init:
            self.start_from_principal_parts()
        if len(self.lora_magnitude):
            self.squared_norms = self.linear.dequantize().square().sum(1)
            for m, (start, stop) in zip(self.lora_magnitude, self.blocks, strict=True):
                m.copy_(self.squared_norms[start:stop].sqrt())

    def start_from_principal_parts(self) -> None:
        """PiSSA: the principal singular vectors of each block's weights, times roots of their singular values."""
        if not isinstance(self.linear, Linear):
            raise UserError("--lora_init pissa is for weights that are not quantized; leave out it or --quantize")
        if self.linear.weight.is_meta:  # a model without values
            return
        for A, B, (start, stop) in zip(self.lora_A, self.lora_B, self.blocks, strict=True):
            U, S, Vh = principal(self.linear.weight[start:stop].float(), A.size(0))
            root = (S / self.scaling).sqrt()
            A.zero_()[: len(S)] = root.unsqueeze(1) * Vh  # a block may have fewer channels than r
            B[:, : len(S)] = U * root
        self.lora_A_start, self.lora_B_start = torch.cat(tuple(self.lora_A)), torch.cat(tuple(self.lora_B))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        p = self.dropout if self.training else 0.0
        return _LoRAFunction.apply(x, self, p, *self.lora_A, *self.lora_B, *self.lora_magnitude)

    @torch.no_grad()
    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """A (R, in_features) and B (channels, R) of each block, fp32, such that its update is s B A."""
        A, Bs = _factors(self, [*self.lora_A, *self.lora_B], torch.float32)
        return list(zip(A.split(Bs[0].size(1)), Bs, strict=True))

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update as one matrix, (out_features, in_features), fp32."""
        out = self.lora_A[0].new_zeros(self.linear.out_features, self.linear.in_features)
        for (A, B), (start, stop) in zip(self.factors(), self.blocks, strict=True):
            out[start:stop] = (B @ A) * self.scaling
        return out

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of one linear layer that computes the same, (out_features, in_features), fp32."""
        weight = self.linear.dequantize() + self.delta()
        for m, (start, stop) in zip(self.lora_magnitude, self.blocks, strict=False):
            rows = weight[start:stop]
            rows *= (m / rows.norm(dim=1).clamp(min=SMALLEST_NORM)).unsqueeze(1)
        return weight


def principal(weight: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest singular values, or all if there are fewer, as U (m, r), S (r,) and V^T (r, n) of an (m, n)."""
    if 4 * (r + _OVERSAMPLING) >= min(weight.shape):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(weight, q=r + _OVERSAMPLING, niter=_ITERATIONS)
        Vh = V.T
    return U[:, :r], S[:r], Vh[:r]


def _parameters(shapes: Sequence[tuple[int, ...]], like: dict) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(shape, **like)) for shape in shapes)


class _LoRAFunction(Function):
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
    def forward(ctx: Any, x: Tensor, layer: "LoRALinear", p: float, *trained: Tensor) -> Tensor:
        y = layer.linear.forward_no_grad(x)
        rows, out = x.flatten(0, -2), y.flatten(0, -2)  # (N, in_features), (N, out_features); out shares y's memory
        A, Bs = _factors(layer, trained, y.dtype)
        seed = torch.randint(2**31 - 1, (1,), device=x.device) if p else None
        h = matmul((rows if seed is None else dropped(rows, seed, p)).to(y.dtype), A.T)  # (N, blocks * R)
        norms = _channel_norms(layer, A, Bs) if len(layer.lora_magnitude) else []
        Bs = _scale_channels(layer, out, Bs, norms=norms, trained=trained)
        for (start, stop), B, part in zip(layer.blocks, Bs, h.split(Bs[0].size(1), 1), strict=True):
            add_matmul(out[:, start:stop], part, B.T, layer.scaling)
        ctx.layer, ctx.p, ctx.shape, ctx.dtype, ctx.n_norms = layer, p, x.shape, x.dtype, len(norms)
        ctx.autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        save(ctx, x, h, *([] if seed is None else [seed]), *norms, *trained)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *rest = saved(ctx)
        layer, p, r = ctx.layer, ctx.p, ctx.layer.lora_A[0].size(0)
        seed = rest.pop(0) if p else None
        norms, trained = rest[: ctx.n_norms], rest[ctx.n_norms :]
        rows, d_out = x.flatten(0, -2), dy.flatten(0, -2)
        A, Bs = _factors(layer, trained, dy.dtype)
        parts = h.split(Bs[0].size(1), 1)
        dms = []
        if norms:
            with torch.autocast(x.device.type, dy.dtype) if ctx.autocast else nullcontext():
                d_out, dms = _magnitude_gradients(
                    layer, rows, d_out=d_out, parts=parts, Bs=Bs, norms=norms, trained=trained
                )
        d_blocks = [d_out[:, start:stop] for start, stop in layer.blocks]
        dBs = [matmul(d.T, part[:, :r]).float() * layer.scaling for d, part in zip(d_blocks, parts, strict=True)]
        dh = torch.cat([matmul(d, B) for d, B in zip(d_blocks, Bs, strict=True)], 1) * layer.scaling  # (N, blocks * R)
        dA = matmul(dh.T, (rows if seed is None else dropped(rows, seed, p)).to(dy.dtype))
        dAs = [dA_of_block[:r] for dA_of_block in dA.float().split(Bs[0].size(1))]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = layer.linear.grad_input(d_out)
            if seed is None:
                add_matmul(dx, dh, A, 1.0)
            else:
                dx = add_dropped(dx, matmul(dh, A), seed, p)
            dx = dx.to(ctx.dtype).view(ctx.shape)
        return dx, None, None, *dAs, *dBs, *dms


def _factors(layer: "LoRALinear", trained: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """All A in one, (blocks * R, in_features), and the B, (channels of the block, R) each, in `dtype`."""
    n = len(layer.blocks)
    As, Bs = trained[:n], trained[n : 2 * n]
    if layer.lora_A_start is not None and layer.lora_B_start is not None:
        A_starts = layer.lora_A_start.split(As[0].size(0))
        B_starts = layer.lora_B_start.split([B.size(0) for B in Bs])
        As = [x for pair in zip(As, A_starts, strict=True) for x in pair]
        Bs = [torch.cat((B, -start), 1) for B, start in zip(Bs, B_starts, strict=True)]
    return torch.cat(tuple(As)).to(dtype), [B.to(dtype) for B in Bs]


def _channel_norms(layer: "LoRALinear", A: Tensor, Bs: list[Tensor]) -> list[Tensor]:
    """|W + s B A| of each adapted channel, (channels of the block,), fp32; makes no matrix of the weight's size.

    For a row w of W and b of B the square is |w|^2 + 2 s b A w + s^2 b A A^T b^T.
    """
    crossed = layer.linear.forward_no_grad(A)  # (blocks * R, out_features)
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


def _scale_channels(
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


def _magnitude_gradients(
    layer: "LoRALinear",
    rows: Tensor,
    d_out: Tensor,
    parts: Sequence[Tensor],
    Bs: list[Tensor],
    norms: list[Tensor],
    trained: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of what the magnitudes scale, (N, out_features), and the magnitudes' own."""
    z, d_out, dms = layer.linear.forward_no_grad(rows), d_out.clone(), []
    for norm, m, B, h, (start, stop) in zip(norms, trained[-len(norms) :], Bs, parts, layer.blocks, strict=True):
        unscaled, d = z[:, start:stop], d_out[:, start:stop]
        if layer.linear.bias is not None:
            unscaled = (unscaled - layer.linear.bias[start:stop]).to(h.dtype)  # autocast leaves a bias in fp32
        add_matmul(unscaled, h, B.T, layer.scaling)
        dms.append((d * unscaled).sum(0, dtype=torch.float32) / norm)
        d.mul_((m / norm).to(d.dtype))
    return d_out, dms
