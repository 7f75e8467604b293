"""A linear layer with low-rank updates: what it is made of and begins with, and the weight it amounts to.

Letters: s scale of the updates, r their rank, R rank of what is computed with (r, or 2 r with a start).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from lit_gpt.args import LoRAArgs
from lit_gpt.errors import UserError
from lit_gpt.linear import Linear, LinearLayer
from lit_gpt.lora.product import SMALLEST_NORM, LoRAProduct, factors

OVERSAMPLING, ITERATIONS = 8, 16
"""Of the randomized SVD (https://arxiv.org/abs/0909.4061 algorithm 4.4)."""


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
        begins: give the updates their first values. False leaves out PiSSA's, whose search takes long, and whose place
            those of a run are to take.

    Raises:
        UserError: PiSSA is to begin on quantized weights.
    """

    lora_A_start: Tensor | None
    lora_B_start: Tensor | None

    def __init__(
        self, linear: LinearLayer, args: LoRAArgs, blocks: list[tuple[int, int]] | None = None, begins: bool = True
    ) -> None:
        super().__init__()
        self.linear = linear
        self.blocks = blocks or [(0, linear.out_features)]
        self.scaling = args.scaling
        self.dropout = args.lora_dropout
        like = {"device": linear.weight.device, "dtype": torch.float32}
        sizes = [stop - start for start, stop in self.blocks]
        self.lora_A = parameters([(args.lora_r, linear.in_features) for _ in sizes], like)
        self.lora_B = parameters([(n, args.lora_r) for n in sizes], like)
        self.lora_magnitude = parameters([(n,) for n in sizes] if args.lora_dora else [], like)
        for B in self.lora_B:
            B.lr_factor = args.lora_plus_ratio  # https://arxiv.org/abs/2402.12354; read where the optimizer is made
        n_start = args.lora_r * len(sizes) if args.lora_init == "pissa" else 0
        for name, shape in (("A", (n_start, linear.in_features)), ("B", (sum(sizes), args.lora_r))):
            self.register_buffer(f"lora_{name}_start", torch.zeros(shape, **like) if n_start else None)
        self.register_buffer("squared_norms", None, persistent=False)  # (out_features,), of the frozen weights
        self.kept_values = args.lora_r * len(sizes) + n_start
        again = 2 * linear.in_features * linear.out_features if args.lora_dora else 0
        self.flops_besides = again + (6 * linear.in_features * n_start + 4 * sum(sizes) * args.lora_r * bool(n_start))
        self.reset_parameters(begins)

    @torch.no_grad()
    def reset_parameters(self, begins: bool = True) -> None:
        """First values, with which the layer computes what it did before."""
        for A, B in zip(self.lora_A, self.lora_B, strict=True):
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as nn.Linear does, and as the paper's own code
            nn.init.zeros_(B)
        if self.lora_A_start is not None and begins:
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
        return LoRAProduct.apply(x, self, p, *self.lora_A, *self.lora_B, *self.lora_magnitude)

    @torch.no_grad()
    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """A (R, in_features) and B (channels, R) of each block, fp32, such that its update is s B A."""
        A, Bs = factors(self, [*self.lora_A, *self.lora_B], torch.float32)
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
    if 4 * (r + OVERSAMPLING) >= min(weight.shape):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(weight, q=r + OVERSAMPLING, niter=ITERATIONS)
        Vh = V.T
    return U[:, :r], S[:r], Vh[:r]


def parameters(shapes: Sequence[tuple[int, ...]], like: dict) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(shape, **like)) for shape in shapes)
