"""Linear layers behind one interface, however their weight is stored, and the embedding."""

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
    """A linear layer, y = W x + bias. Subclasses that store W differently implement the three methods below.

    Attributes:
        in_features, out_features: channels of x and y.
        weight: W as it is stored; its device is that of the layer.
        bias: (out_features,) or None.
    """

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None

    def forward_no_grad(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias, (..., out_features), for x (..., in_features), without recording for autograd."""
        raise NotImplementedError

    def grad_input(self, dy: Tensor) -> Tensor:
        """Returns dy W, (..., in_features), for dy (..., out_features), without recording for autograd."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """Returns W, (out_features, in_features), in fp32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W^T + bias for a frozen W; autograd saves no tensor for the backward pass."""
        return _FrozenLinearFunction.apply(x, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _FrozenLinearFunction(Function):
    """The autograd function of a frozen layer: only its input gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LinearLayer) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer.forward_no_grad(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None]:
        return (ctx.layer.grad_input(dy).to(ctx.dtype) if ctx.needs_input_grad[0] else None), None


class _TrainedLinearFunction(Function):
    """The autograd function of a trained W: its gradient needs x, which is recomputed if it was marked recomputable."""

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
    """A token embedding."""

    def reset_parameters(self) -> None:
        """Draws random values, except on the meta device (see `Linear.reset_parameters`)."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Linear(LinearLayer, nn.Linear):
    """A linear layer that stores W in the dtype of the model; W may train."""

    def reset_parameters(self) -> None:
        """Draws random values, except on the meta device, where that would import torch's compiler for a second."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        trains = self.weight.requires_grad and torch.is_grad_enabled()
        eager = not torch.compiler.is_compiling() and not x.is_meta  # the meta device has no autocast
        if trains and eager and (upcasts(x) or not torch.is_autocast_enabled(x.device.type)):
            return _TrainedLinearFunction.apply(x, self.weight, self.bias)
        if eager and upcasts(x):  # autograd would keep fp32 copies of the upcast parts
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
