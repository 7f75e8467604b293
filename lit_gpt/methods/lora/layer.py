"""A linear layer with low-rank updates: its parameters, its matmul and gradients, and its merged weight.

Shapes: N tokens, s scale of the updates, r their rank, R rank in the matmuls (r, or 2 r with initial factors).
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
from lit_gpt.layers.cpu_matmul import add_matmul, matmul, without_autocast
from lit_gpt.layers.dropout import Draws, add_dropped, dropped
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.layers.recompute import save, saved
from lit_gpt.methods.lora.experts import experts_output
from lit_gpt.methods.lora.principal import principal

SMALLEST_NORM = 1e-30
"""Lower bound of the norm of a channel's weights, so that rows of zeros, as in a padded vocabulary, stay zeros."""


class LoRALinear(nn.Module):
    """A frozen linear layer plus one low-rank update per block of its output channels.

    The updates are fp32 whatever the layer's dtype, since small steps on 16-bit weights get lost in rounding; they are
    multiplied in the dtype of the output.

    PiSSA (https://arxiv.org/abs/2404.02948) trains the principal part of W and freezes the residual, W - s B0 A0. Here
    W stays as it is, and its principal part is subtracted on the fly: W x + s (B A - B0 A0) x is the same function with
    the same gradients, equals the base model at first, and has no rounded residual. A0 and B0 are saved with A and B.

    DoRA (https://arxiv.org/abs/2402.09353) gives each output channel a trained magnitude m:
    y = m / |W + s B A| (W x + s B A x), where the norm of the channel's weights is a constant in the backward pass.

    Attributes:
        kept_values: number of values per token that are saved for the backward pass, besides the input.
        flops_besides: operations per token, forward and backward, besides the matmuls with its parameters.

    Args:
        linear: the layer to wrap.
        args: rank, scale, dropout, and variant.
        blocks: (start, stop) of the output channels that get an update; None is one block, all of them.
        init: False if values of a run are loaded next: PiSSA's initial factors, which take long to compute, are left
            out.
        draws: what dropout draws from; the model's.

    Raises:
        UserError: PiSSA is requested for quantized weights.
    """

    lora_A_start: Tensor | None
    lora_B_start: Tensor | None
    of_experts = staticmethod(experts_output)

    def __init__(
        self,
        linear: LinearLayer,
        args: LoRAArgs,
        blocks: list[tuple[int, int]] | None = None,
        init: bool = True,
        draws: Draws | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.blocks = blocks or [(0, linear.out_features)]
        self.scaling = args.scaling
        self.dropout = args.lora_dropout
        self.draws = draws or Draws()
        self.number = self.draws.add_layer()
        like = {"device": linear.weight.device, "dtype": torch.float32}
        sizes = [stop - start for start, stop in self.blocks]
        self.lora_A = _parameters([(args.lora_r, linear.in_features) for _ in sizes], like)
        self.lora_B = _parameters([(n, args.lora_r) for n in sizes], like)
        self.lora_magnitude = _parameters([(n,) for n in sizes] if args.lora_dora else [], like)
        for B in self.lora_B:
            B.lr_factor = args.lora_plus_ratio  # LoRA+, https://arxiv.org/abs/2402.12354; the optimizer reads it
        n_start = args.lora_r * len(sizes) if args.lora_init == "pissa" else 0
        for name, shape in (("A", (n_start, linear.in_features)), ("B", (sum(sizes), args.lora_r))):
            self.register_buffer(f"lora_{name}_start", torch.zeros(shape, **like) if n_start else None)
        self.register_buffer("squared_norms", None, persistent=False)  # of the rows of W, (out_features,)
        self.kept_values = args.lora_r * len(sizes) + n_start
        repeated = 2 * linear.in_features * linear.out_features if args.lora_dora else 0
        initial = 6 * linear.in_features * n_start + 4 * sum(sizes) * args.lora_r * bool(n_start)
        self.flops_besides = repeated + initial
        self.reset_parameters(init)

    @torch.no_grad()
    def reset_parameters(self, init: bool = True) -> None:
        """Initializes the updates so that the layer computes the same as the frozen one.

        Args:
            init: False leaves out PiSSA's initial factors.
        """
        for A, B in zip(self.lora_A, self.lora_B, strict=True):
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as in nn.Linear and in the paper's code
            nn.init.zeros_(B)
        if self.lora_A_start is not None and init:
            self._init_pissa()
        if len(self.lora_magnitude):
            self.squared_norms = self.linear.dequantize().square().sum(1)
            for m, (start, stop) in zip(self.lora_magnitude, self.blocks, strict=True):
                m.copy_(self.squared_norms[start:stop].sqrt())

    def _init_pissa(self) -> None:
        """Initializes A and B as PiSSA does, by the largest singular values of each block of W and their vectors.

        Raises:
            UserError: W is quantized.
        """
        if not isinstance(self.linear, Linear):
            raise UserError("--lora_init pissa is for weights that are not quantized; leave out it or --quantize")
        if self.linear.weight.is_meta:  # a model without values
            return
        for A, B, (start, stop) in zip(self.lora_A, self.lora_B, self.blocks, strict=True):
            U, S, Vh = principal(self.linear.weight[start:stop].float(), A.size(0))
            root = (S / self.scaling).sqrt()
            A.zero_()[: len(S)] = root.unsqueeze(1) * Vh  # S is shorter than r if the block has fewer channels
            B[:, : len(S)] = U * root
        self.lora_A_start, self.lora_B_start = torch.cat(tuple(self.lora_A)), torch.cat(tuple(self.lora_B))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output with the updates, (..., out_features), for x (..., in_features)."""
        p = self.dropout if self.training else 0.0
        return _LoRAFunction.apply(x, self, p, *self.lora_A, *self.lora_B, *self.lora_magnitude)

    @torch.no_grad()
    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """Returns A (R, in_features) and B (channels, R) in fp32 of each block, whose update is s B A."""
        A, Bs = _factors(self, [*self.lora_A, *self.lora_B], torch.float32)
        return list(zip(A.split(Bs[0].size(1)), Bs, strict=True))

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Returns the updates s B A of all blocks as one matrix, (out_features, in_features) in fp32."""
        out = self.lora_A[0].new_zeros(self.linear.out_features, self.linear.in_features)
        for (A, B), (start, stop) in zip(self.factors(), self.blocks, strict=True):
            out[start:stop] = (B @ A) * self.scaling
        return out

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Returns the weight of a plain linear layer that computes the same, (out_features, in_features) in fp32."""
        weight = self.linear.dequantize() + self.delta()
        for m, (start, stop) in zip(self.lora_magnitude, self.blocks, strict=False):
            rows = weight[start:stop]
            rows *= (m / rows.norm(dim=1).clamp(min=SMALLEST_NORM)).unsqueeze(1)
        return weight


def _parameters(shapes: Sequence[tuple[int, ...]], like: dict) -> nn.ParameterList:
    """Returns uninitialized parameters of these shapes."""
    return nn.ParameterList(nn.Parameter(torch.empty(shape, **like)) for shape in shapes)


class _LoRAFunction(Function):
    """The autograd function of `LoRALinear`: the matmul with the frozen weight, with the updates added in place.

    It saves x, or the sources that x is recomputed from, and h = A x, which has few channels. With magnitudes (DoRA),
    the backward pass repeats the matmul with the frozen weight, since its result takes as much memory as the output.

    Args:
        x: (..., in_features).
        layer: the `LoRALinear`, for its frozen layer, blocks and scale.
        p: probability that a channel of a token is dropped on its way to A.
        trained: the A of each block, then the B of each block, then the magnitudes, if any.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "LoRALinear", p: float, *trained: Tensor) -> Tensor:
        y = layer.linear.forward_no_grad(x)
        rows, out = x.flatten(0, -2), y.flatten(0, -2)  # (N, in_features), (N, out_features); out is a view of y
        A, Bs = _factors(layer, trained, y.dtype)
        drawn = [layer.draws.seed_of(layer.number, x.device)] if p else []
        if p and layer.draws.keys is not None:
            drawn.append(layer.draws.keys)
        h = matmul(_dropped(rows, p, drawn).to(y.dtype), A.T)  # (N, blocks * R)
        norms = _channel_norms(layer, A, Bs) if len(layer.lora_magnitude) else []
        Bs = _scale_channels(layer, out, Bs, norms=norms, trained=trained)
        for (start, stop), B, part in zip(layer.blocks, Bs, h.split(Bs[0].size(1), 1), strict=True):
            add_matmul(out[:, start:stop], part, B.T, layer.scaling)
        ctx.layer, ctx.p, ctx.shape, ctx.dtype = layer, p, x.shape, x.dtype
        ctx.n_drawn, ctx.n_norms = len(drawn), len(norms)
        ctx.autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        save(ctx, x, h, *drawn, *norms, *trained)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *rest = saved(ctx)
        layer, p, r = ctx.layer, ctx.p, ctx.layer.lora_A[0].size(0)
        drawn, rest = rest[: ctx.n_drawn], rest[ctx.n_drawn :]
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
        dA = matmul(dh.T, _dropped(rows, p, drawn).to(dy.dtype))
        dAs = [dA_of_block[:r] for dA_of_block in dA.float().split(Bs[0].size(1))]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = layer.linear.grad_input(d_out)
            if not drawn:
                add_matmul(dx, dh, A, 1.0)
            else:
                dx = add_dropped(dx, matmul(dh, A), drawn[0], p, *drawn[1:])
            dx = dx.to(ctx.dtype).view(ctx.shape)
        return dx, None, None, *dAs, *dBs, *dms


def _dropped(rows: Tensor, p: float, drawn: Sequence[Tensor]) -> Tensor:
    """Returns `rows` under dropout, or themselves if nothing was drawn.

    Args:
        drawn: nothing, a seed, or a seed and the key of each row.
    """
    return dropped(rows, drawn[0], p, *drawn[1:]) if drawn else rows


def _factors(layer: "LoRALinear", trained: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Returns all A as one (blocks * R, in_features), and each B, (channels of the block, R), in `dtype`."""
    n = len(layer.blocks)
    As, Bs = trained[:n], trained[n : 2 * n]
    if layer.lora_A_start is not None and layer.lora_B_start is not None:
        A_starts = layer.lora_A_start.split(As[0].size(0))
        B_starts = layer.lora_B_start.split([B.size(0) for B in Bs])
        As = [x for pair in zip(As, A_starts, strict=True) for x in pair]
        Bs = [torch.cat((B, -start), 1) for B, start in zip(Bs, B_starts, strict=True)]
    return torch.cat(tuple(As)).to(dtype), [B.to(dtype) for B in Bs]


def _channel_norms(layer: "LoRALinear", A: Tensor, Bs: list[Tensor]) -> list[Tensor]:
    """Returns |W + s B A| of each channel, (channels of the block,) in fp32 per block, without computing W + s B A.

    For a row w of W and b of B, its square is |w|^2 + 2 s b A w + s^2 b A A^T b^T.
    """
    A_W = layer.linear.forward_no_grad(A)  # (blocks * R, out_features)
    if layer.linear.bias is not None:
        A_W = A_W - layer.linear.bias
    norms, R, s = [], Bs[0].size(1), layer.scaling
    with without_autocast(A):
        for a, a_w, B, (start, stop) in zip(A.split(R), A_W.split(R), Bs, layer.blocks, strict=True):
            a, b = a.float(), B.float()
            update = 2 * s * (b * a_w[:, start:stop].float().T).sum(1) + s * s * ((b @ (a @ a.T)) * b).sum(1)
            squared = (layer.squared_norms[start:stop] + update).clamp(min=0)
            norms.append(squared.sqrt().clamp(min=SMALLEST_NORM))
    return norms


def _scale_channels(
    layer: "LoRALinear", out: Tensor, Bs: list[Tensor], norms: list[Tensor], trained: Sequence[Tensor]
) -> list[Tensor]:
    """Scales the frozen output in `out` (N, out_features), bias excepted, by m / norm; returns B scaled alike."""
    scaled = list(Bs)
    for i, (norm, m, (start, stop)) in enumerate(zip(norms, trained[-len(norms) :], layer.blocks, strict=False)):
        part, scale = out[:, start:stop], m / norm
        bias = layer.linear.bias
        without_bias = part if bias is None else part - bias[start:stop]
        part.addcmul_(without_bias, (scale - 1).to(out.dtype))  # a scale of exactly 1 changes no bit
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
    """Returns the gradients of the output before scaling, (N, out_features), and of the magnitudes."""
    z, d_out, dms = layer.linear.forward_no_grad(rows), d_out.clone(), []
    for norm, m, B, h, (start, stop) in zip(norms, trained[-len(norms) :], Bs, parts, layer.blocks, strict=True):
        unscaled, d = z[:, start:stop], d_out[:, start:stop]
        if layer.linear.bias is not None:
            unscaled = (unscaled - layer.linear.bias[start:stop]).to(h.dtype)  # autocast leaves a bias in fp32
        add_matmul(unscaled, h, B.T, layer.scaling)
        dms.append((d * unscaled).sum(0, dtype=torch.float32) / norm)
        d.mul_((m / norm).to(d.dtype))
    return d_out, dms
