"""The MLPs of a block: plain, gated, and mixtures of gated ones.

Shapes: C n_embd, N tokens of a batch, K experts a token goes through.
"""

from collections.abc import Callable, Sequence
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
    gelu_mul,
    gelu_mul_backward,
    recomputable,
    silu_mul,
    silu_mul_backward,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
GATED: dict[str, tuple] = {
    "gelu": (gelu_mul, gelu_mul_backward, "none"),
    "gelu_tanh": (gelu_mul, gelu_mul_backward, "tanh"),
    "silu": (silu_mul, silu_mul_backward),
}
"""Activation -> activation(gate) * up, its gradients, and further arguments of both."""


class PlainMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc = Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.proj = Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return self.proj(recomputable(self.activation(x), self.activation, x))


class GatedMLP(nn.Module):
    """https://arxiv.org/abs/2002.05202 equation 6: `fc_1` is the gate."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc_1 = Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.fc_2 = Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.proj = Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)
        self.forward_, self.backward_, *self.settings = GATED[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc_1(x), self.fc_2(x)
        if not (gate.requires_grad or up.requires_grad):
            return self.proj(self.forward_(gate, up, *self.settings))
        y = GatedFunction.apply(gate, up, self.forward_, self.backward_, *self.settings)
        return self.proj(recomputable(y, self.activated, gate, up))

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """activation(gate) * up."""
        return self.forward_(gate, up, *self.settings)


class MoE(nn.Module):
    """Mixture of gated MLPs, https://arxiv.org/abs/2401.04088 section 2.1: each token goes through a few of them.

    Tokens are laid out by expert, so that each multiplies the rows of one tensor: K choices a token, N * K rows.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_expert_per_token = config.n_expert_per_token
        self.gate = Linear(config.n_embd, config.n_expert, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config) for _ in range(config.n_expert))

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.gate(x).flatten(0, -2).topk(self.n_expert_per_token)  # (N, K)
        weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)
        order = chosen.flatten().argsort(stable=True)  # of the choices, the first expert's before the second's ...
        place = order.argsort()  # of each choice in that order
        rows = _ToExperts.apply(x.flatten(0, -2), order, place)  # (N * K, C)
        parts = zip(self.experts, self.shares(rows, chosen), strict=True)
        # an expert without rows has a gradient of zero, as an optimizer's momentum wants it
        done = torch.cat([expert(part) for expert, part in parts if len(part) or torch.is_grad_enabled()])
        y = weights.unsqueeze(1) @ done.index_select(0, place).unflatten(0, chosen.shape)  # (N, 1, C)
        return y.view_as(x)

    def shares(self, rows: Tensor, chosen: Tensor) -> Sequence[Tensor]:
        """The rows of each expert."""
        if chosen.is_meta:  # without values, for counting operations: as many for each
            return rows.tensor_split(len(self.experts))
        return rows.split(chosen.flatten().bincount(minlength=len(self.experts)).tolist())


class _ToExperts(Function):
    """Rows of (N, C) -> a row for each choice, by expert, (N * K, C).

    The gradient adds up each token's choices in their own order, so that on a GPU, too, it is the same each time.

    Args:
        order: (N * K,), the choices by expert; choice i is of token i // K.
        place: (N * K,), where each of them stands in it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.shape = len(x), len(order) // len(x)
        ctx.save_for_backward(place)
        return x.index_select(0, order // ctx.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return dy.index_select(0, place).unflatten(0, ctx.shape).sum(1), None, None


MLPS = {"plain": PlainMLP, "gated": GatedMLP, "moe": MoE}
