"""Low-rank adaptation, https://arxiv.org/abs/2106.09685: y = W x + (alpha / r) B A x with W frozen.

`inject` swaps linear layers of a loaded model in place; `merge` folds the updates in and swaps them back.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from lit_gpt.args import LoRAArgs
from lit_gpt.dropout import add_dropped, dropped
from lit_gpt.lean import save, saved
from lit_gpt.linear import Linear, LinearLayer
from lit_gpt.model import GPT


class LoRALinear(nn.Module):
    """A frozen linear layer plus one low-rank update per block of its output channels.

    The updates are fp32 whatever the layer's dtype, since small steps on 16-bit weights get lost in rounding; they are
    multiplied in the dtype of the output.

    Args:
        linear: the layer to wrap.
        args: rank, scale and dropout.
        blocks: (start, stop) of the output channels that get an update; None is one block, all of them.
    """

    def __init__(self, linear: LinearLayer, args: LoRAArgs, blocks: list[tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.linear = linear
        self.blocks = blocks or [(0, linear.out_features)]
        self.scaling = args.lora_alpha / args.lora_r
        self.dropout = args.lora_dropout
        like = {"device": linear.weight.device, "dtype": torch.float32}
        self.lora_A = nn.ParameterList(
            nn.Parameter(torch.empty(args.lora_r, linear.in_features, **like)) for _ in self.blocks
        )
        self.lora_B = nn.ParameterList(
            nn.Parameter(torch.empty(stop - start, args.lora_r, **like)) for start, stop in self.blocks
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random and B zero, so that the update begins at nothing."""
        for A, B in zip(self.lora_A, self.lora_B, strict=True):
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as nn.Linear does, and as the paper's own code
            nn.init.zeros_(B)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return LoRAProduct.apply(x, self, self.dropout if self.training else 0.0, *self.lora_A, *self.lora_B)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update as one matrix, (out_features, in_features), fp32."""
        out = self.lora_A[0].new_zeros(self.linear.out_features, self.linear.in_features)
        for A, B, (start, stop) in zip(self.lora_A, self.lora_B, self.blocks, strict=True):
            out[start:stop] = (B @ A) * self.scaling
        return out


class LoRAProduct(Function):
    """The product with the frozen weight, and the updates added to it in place.

    For the backward pass it keeps x, or what x is made of, and h = A x, which has few channels.

    Args:
        x: (..., in_features).
        layer: whose weight, blocks and scale are used.
        p: probability that a channel of a token is dropped on its way to A.
        trained: its A, one a block, then its B.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: LoRALinear, p: float, *trained: Tensor) -> Tensor:
        y = layer.linear.product(x)
        rows, out = x.flatten(0, -2), y.flatten(0, -2)  # (N, in_features), (N, out_features); out shares y's memory
        A, Bs = matrices(trained, y.dtype)
        seed = torch.randint(2**31 - 1, (1,), device=x.device) if p else None
        h = (dropped(rows, seed, p) if p else rows).to(y.dtype) @ A.T  # (N, blocks * r)
        for (start, stop), B, part in zip(layer.blocks, Bs, h.split(Bs[0].size(1), 1), strict=True):
            out[:, start:stop].addmm_(part, B.T, alpha=layer.scaling)
        ctx.layer, ctx.p, ctx.shape, ctx.dtype = layer, p, x.shape, x.dtype
        save(ctx, x, h, *([seed] if p else []), *trained)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *rest = saved(ctx)
        layer, p = ctx.layer, ctx.p
        seed, trained = (rest[0], rest[1:]) if p else (None, rest)
        rows, d_out = x.flatten(0, -2), dy.flatten(0, -2)
        A, Bs = matrices(trained, dy.dtype)
        d_blocks = [d_out[:, start:stop] for start, stop in layer.blocks]
        dBs = [
            (d.T @ part).float() * layer.scaling for d, part in zip(d_blocks, h.split(Bs[0].size(1), 1), strict=True)
        ]
        dh = torch.cat([d @ B for d, B in zip(d_blocks, Bs, strict=True)], 1) * layer.scaling  # (N, blocks * r)
        dA = dh.T @ (dropped(rows, seed, p) if p else rows).to(dy.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = layer.linear.input_gradient(d_out)
            dx = add_dropped(dx, dh @ A, seed, p) if p else dx.addmm_(dh, A)
            dx = dx.to(ctx.dtype).view(ctx.shape)
        return dx, None, None, *dA.float().split(Bs[0].size(1)), *dBs


def matrices(trained: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """All A in one, (blocks * r, in_features), and the B, (channels of the block, r) each, in `dtype`."""
    n = len(trained) // 2
    return torch.cat(tuple(trained[:n])).to(dtype), [B.to(dtype) for B in trained[n:]]


def inject(model: GPT, args: LoRAArgs) -> None:
    """Wrap the chosen layers of `model`, in place, and freeze everything else."""
    q, k, v = model.config.qkv_sizes
    rows = {"query": (0, q), "key": (q, q + k), "value": (q + k, q + k + v)}
    blocks = [rows[name] for name in rows if getattr(args, f"lora_{name}")]
    for block in model.transformer.h:
        if blocks:
            block.attn.qkv = LoRALinear(block.attn.qkv, args, blocks)
        if args.lora_projection:
            block.attn.proj = LoRALinear(block.attn.proj, args)
        if args.lora_mlp:
            for parent, name, linear in linear_layers(block.mlp):
                setattr(parent, name, LoRALinear(linear, args))
    if args.lora_head:
        model.lm_head = LoRALinear(model.lm_head, args)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trainable(name)


def trainable(name: str) -> bool:
    """Whether the parameter of this name belongs to the method: it is what is trained and what is saved."""
    return ".lora_" in name


@torch.no_grad()
def merge(model: GPT) -> None:
    """Add every update to its frozen weight, in fp32, and take the wrappers off: the names are the base's again.

    Adapted layers of a quantized base come out in the dtype of the embeddings.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, LoRALinear):
                continue
            linear = child.linear
            merged = (linear.dequantize() + child.delta()).to(model.transformer.wte.weight.dtype)
            if not isinstance(linear, Linear):  # 4 or 8 bits have no room for an update: the layer leaves them
                bias, linear = linear.bias, Linear(linear.in_features, linear.out_features, device="meta")
                linear.weight, linear.bias = nn.Parameter(merged, requires_grad=False), bias
            elif linear.weight is model.transformer.wte.weight:  # a tied head moves away from the embeddings
                linear.weight = nn.Parameter(merged, requires_grad=False)
                model.config.tie_embeddings = False
            else:
                linear.weight.copy_(merged)
            setattr(parent, name, linear)


def linear_layers(module: nn.Module) -> list[tuple[nn.Module, str, LinearLayer]]:
    """(parent, attribute, layer) of every linear layer below `module`."""
    return [(m, n, c) for m in module.modules() for n, c in m.named_children() if isinstance(c, LinearLayer)]
