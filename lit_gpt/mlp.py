"""The MLPs of a block: plain, gated, and mixtures of gated ones.

Shapes: C n_embd, N tokens of a batch.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.lean import (
    GatedFunction,
    gelu_product,
    gelu_product_backward,
    remakeable,
    silu_product,
    silu_product_backward,
)
from lit_gpt.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
GATED: dict[str, tuple] = {
    "gelu": (gelu_product, gelu_product_backward, "none"),
    "gelu_tanh": (gelu_product, gelu_product_backward, "tanh"),
    "silu": (silu_product, silu_product_backward),
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
        return self.proj(remakeable(self.activation(x), self.activation, x))


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
        return self.proj(remakeable(y, self.product, gate, up))

    def product(self, gate: Tensor, up: Tensor) -> Tensor:
        """activation(gate) * up."""
        return self.forward_(gate, up, *self.settings)


class MoE(nn.Module):
    """Mixture of gated MLPs, https://arxiv.org/abs/2401.04088 section 2.1: each token goes through a few of them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_expert_per_token = config.n_expert_per_token
        self.gate = Linear(config.n_embd, config.n_expert, bias=False)
        self.experts = nn.ModuleList(GatedMLP(config) for _ in range(config.n_expert))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)  # (N, C)
        scores, chosen = self.gate(flat).topk(self.n_expert_per_token)  # (N, n_expert_per_token)
        weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)
        y = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            token, rank = self.routed(chosen, e)
            y = y.index_add(0, token, weights[token, rank].unsqueeze(-1) * expert(flat[token]))
        return y.view_as(x)

    def routed(self, chosen: Tensor, e: int) -> tuple[Tensor, ...]:
        """Tokens that chose expert e, and as their how-manieth choice."""
        if chosen.is_meta:  # without values, for counting operations: an even share
            share = chosen.new_zeros(chosen.numel() // len(self.experts))
            return share, share
        return torch.where(chosen == e)


MLPS = {"plain": PlainMLP, "gated": GatedMLP, "moe": MoE}
