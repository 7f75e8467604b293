"""The MLPs of a block: plain, gated, and mixtures of experts (MoE).

Shapes: C n_embd, N tokens of a batch, K experts per token.
"""

import math
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
from lit_gpt.layers.dropout import Draws
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


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu2": _relu2,
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
    """An MLP of two linear layers with an activation in between."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc = Linear(config.n_embd, config.intermediate_size, bias=config.mlp_bias)
        self.proj = Linear(config.intermediate_size, config.n_embd, bias=config.mlp_bias)
        made = _WITH_WEIGHTS.get(config.activation)
        self.activation = made() if made else ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return self.proj(recomputable(self.activation(x), self.activation, x))


class GatedMLP(nn.Module):
    """An MLP with a gated activation, such as SwiGLU: proj(activation(fc_1(x)) * fc_2(x)).

    Source: https://arxiv.org/abs/2002.05202 equation 6.
    """

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
        """Returns activation(gate) * up."""
        return self.forward_(gate, up, *self.settings)


class MoE(nn.Module):
    """A mixture of experts, https://arxiv.org/abs/2401.04088 section 2.1: each token is routed to K gated MLPs.

    Rows are sorted by expert, N * K in all, so that each expert multiplies one contiguous slice of them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_expert_per_token = config.n_expert_per_token
        self.gate = Linear(config.n_embd, config.n_expert, bias=config.router_bias)
        self.experts = nn.ModuleList(GatedMLP(config) for _ in range(config.n_expert))
        self.draws = Draws()
        """What the experts' dropout draws from; the model's own, once it is in one."""

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.gate(x).flatten(0, -2).topk(self.n_expert_per_token)  # (N, K)
        weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)
        order = chosen.flatten().argsort(stable=True)  # sorts the N * K choices by expert
        slots = order.argsort()  # the inverse permutation: where each choice lies in the sorted order
        rows = _ToExperts.apply(x.flatten(0, -2), order, slots)  # (N * K, C)
        parts = self.shares(rows, chosen)
        # in training, experts without rows run too: their gradient is zero then, not None, and momentum is updated
        keys, of_rows = self.draws.keys, None
        if keys is not None:
            of_rows = keys.index_select(0, order // self.n_expert_per_token).split([len(part) for part in parts])
        outputs = []
        for i, (expert, part) in enumerate(zip(self.experts, parts, strict=True)):
            if len(part) or torch.is_grad_enabled():
                self.draws.keys = None if of_rows is None else of_rows[i]
                outputs.append(expert(part))
        self.draws.keys, outputs = keys, torch.cat(outputs)
        y = weights.unsqueeze(1) @ outputs.index_select(0, slots).unflatten(0, chosen.shape)  # (N, 1, C)
        return y.view_as(x)

    def shares(self, rows: Tensor, chosen: Tensor) -> Sequence[Tensor]:
        """Splits the sorted rows, (N * K, C), into those of each expert."""
        if chosen.is_meta:  # without values, when operations are counted: an equal share for each
            return rows.tensor_split(len(self.experts))
        return rows.split(chosen.flatten().bincount(minlength=len(self.experts)).tolist())


class _ToExperts(Function):
    """Copies each row of (N, C) to the K slots of its choices, sorted by expert: (N * K, C).

    The gradient adds up each token's choices in a fixed order, so that it is deterministic on a GPU, too.

    Args:
        order: (N * K,), the choices sorted by expert; choice i belongs to token i // K.
        slots: (N * K,), the inverse permutation of `order`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, slots: Tensor) -> Tensor:
        ctx.shape = len(x), len(order) // len(x)
        ctx.save_for_backward(slots)
        return x.index_select(0, order // ctx.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return dy.index_select(0, slots).unflatten(0, ctx.shape).sum(1), None, None


MLPS = {"plain": PlainMLP, "gated": GatedMLP, "moe": MoE}
