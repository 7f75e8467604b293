"""The MLPs of a block: plain and gated; mixtures of them are in `lit_gpt.layers.moe`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.config import Config
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.recompute import (
    GatedFunction,
    clamped_swiglu,
    clamped_swiglu_backward,
    gelu_mul,
    gelu_mul_backward,
    recomputable,
    silu_mul,
    silu_mul_backward,
)


class _XIELU(nn.Module):
    """The activation xIELU with two trained scalars, https://arxiv.org/abs/2411.13010 section 4.

    It is p x^2 + beta x above zero and n (exp(x) - 1 - x) + beta x below, where p and n are softplus(alpha_p) and
    beta + softplus(alpha_n). The constants beta and eps are part of a checkpoint.
    """

    beta: Tensor
    eps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = (nn.Parameter(torch.full((1,), math.log(math.e**0.3 - 1))) for _ in range(2))
        self.register_buffer("beta", torch.tensor(0.5))
        self.register_buffer("eps", torch.tensor(-1e-6))

    def forward(self, x: Tensor) -> Tensor:
        p = F.softplus(self.alpha_p.float()).to(x.dtype)
        beta, eps = self.beta.to(x.dtype), self.eps.to(x.dtype)
        n = beta + F.softplus(self.alpha_n.float()).to(x.dtype)
        below = (torch.expm1(torch.minimum(x, eps)) - x) * n
        return torch.where(x > 0, p * x * x, below) + beta * x


class _Relu2Function(Function):
    """The autograd function of the square of ReLU, which keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.relu(x).square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * F.relu(x) * dy


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu2": _Relu2Function.apply,
}
_WITH_WEIGHTS = {"xielu": _XIELU}
"""Activation that has weights -> its module."""
GATED: dict[str, tuple] = {
    "gelu": (gelu_mul, gelu_mul_backward, "none"),
    "gelu_tanh": (gelu_mul, gelu_mul_backward, "tanh"),
    "silu": (silu_mul, silu_mul_backward),
    "clamped_swiglu": (clamped_swiglu, clamped_swiglu_backward),
}
"""Activation -> the function activation(gate) * up, the function of its gradients, and further arguments of both."""


class PlainMLP(nn.Module):
    """An MLP of two linear layers with an activation in between.

    Args:
        size: hidden channels; 0 means the configuration's.
    """

    ups = ("fc",)
    """Names of the layers that read the input."""

    def __init__(self, config: Config, size: int = 0) -> None:
        super().__init__()
        size = size or config.intermediate_size
        self.fc = Linear(config.n_embd, size, bias=config.mlp_bias)
        self.proj = Linear(size, config.n_embd, bias=config.mlp_bias)
        made = _WITH_WEIGHTS.get(config.activation)
        self.activation = made() if made else ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activated(self.fc(x)))

    def activated(self, x: Tensor) -> Tensor:
        """Returns activation(x), which autograd does not keep."""
        return recomputable(self.activation(x), self.activation, x)


class GatedMLP(nn.Module):
    """An MLP with a gated activation, such as SwiGLU: proj(activation(fc_1(x)) * fc_2(x)).

    Source: https://arxiv.org/abs/2002.05202 equation 6.

    Args:
        size: hidden channels; 0 means the configuration's.
    """

    ups = ("fc_1", "fc_2")
    """Names of the layers that read the input."""

    def __init__(self, config: Config, size: int = 0) -> None:
        super().__init__()
        size = size or config.intermediate_size
        self.fc_1 = Linear(config.n_embd, size, bias=config.mlp_bias)
        self.fc_2 = Linear(config.n_embd, size, bias=config.mlp_bias)
        self.proj = Linear(size, config.n_embd, bias=config.mlp_bias)
        self.forward_, self.backward_, *self.settings = GATED[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activated(self.fc_1(x), self.fc_2(x)))

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Returns activation(gate) * up, which autograd does not keep."""
        if not (gate.requires_grad or up.requires_grad):
            return self.gated(gate, up)
        y = GatedFunction.apply(gate, up, self.forward_, self.backward_, *self.settings)
        return recomputable(y, self.gated, gate, up)

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Returns activation(gate) * up."""
        return self.forward_(gate, up, *self.settings)
