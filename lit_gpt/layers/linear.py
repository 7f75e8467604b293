"""Linear layers: what the rest of the model may ask of one, whatever its weight is stored as."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.layers.cpu_matmul import linear, matmul, upcasts
from lit_gpt.layers.recompute import save, saved


class LinearLayer(nn.Module):
    """y = W x + bias. Whoever stores W in another way than `Linear` does gives the three methods below.

    Attributes:
        in_features, out_features: channels of x and y.
        weight: what is stored; its device is the layer's.
        bias: (out_features,) or None.
    """

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None

    def forward_no_grad(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), bias included; nothing is recorded for a backward pass."""
        raise NotImplementedError

    def grad_input(self, dy: Tensor) -> Tensor:
        """dy W, (..., out_features) -> (..., in_features); nothing is recorded."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """W as (out_features, in_features) in fp32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The product with a frozen W; the backward pass keeps nothing but the layer."""
        return _FrozenLinearFunction.apply(x, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _FrozenLinearFunction(Function):
    """`layer.forward_no_grad` whose only gradient is the input's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LinearLayer) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer.forward_no_grad(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        return (ctx.layer.grad_input(dy).to(ctx.dtype) if ctx.needs_input_grad[0] else None), None


class _TrainedLinearFunction(Function):
    """The product with a W that trains: its gradient needs x, which is made again where it has a recipe."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtype = x.dtype
        save(ctx, x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = saved(ctx)
        rows = dy.flatten(0, -2)
        dx = matmul(dy, weight.to(dy.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        dw = matmul(rows.T, x.flatten(0, -2).to(dy.dtype)) if ctx.needs_input_grad[1] else None
        db = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dw, db


class Embedding(nn.Embedding):
    """A row for each token."""

    def reset_parameters(self) -> None:
        """As `Linear`'s."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Linear(LinearLayer, nn.Linear):
    """W in the dtype of the model. It may train."""

    def reset_parameters(self) -> None:
        """Random values; none on the meta device, where drawing them imports torch's compiler, for a second."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        trains = self.weight.requires_grad and torch.is_grad_enabled()
        eager = not torch.compiler.is_compiling() and not x.is_meta  # which knows no autocast
        if trains and eager and (upcasts(x) or not torch.is_autocast_enabled(x.device.type)):
            return _TrainedLinearFunction.apply(x, self.weight, self.bias)
        if eager and upcasts(x):  # of whose parts autograd would keep a copy in fp32
            return super().forward(x)
        return F.linear(x, self.weight, self.bias)

    def forward_no_grad(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def grad_input(self, dy: Tensor) -> Tensor:
        return matmul(dy, self.weight.to(dy.dtype))

    def dequantize(self) -> Tensor:
        return self.weight.float()

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self)
