"""A mixture of experts beside a gated MLP, each with norms of its own (Gemma 4 26B).

Letters: C n_embd, N tokens of a batch, K experts per token, E experts.
"""

import torch
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.layers.mlp import GatedMLP
from lit_gpt.layers.moe import MoE
from lit_gpt.layers.norms import UnweightedNorm, make_norm


class _Router(nn.Module):
    """What the router's input and the weights of the chosen experts are multiplied by."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = UnweightedNorm(config.norm_eps)
        self.scale = nn.Parameter(torch.ones(config.n_embd))
        self.per_expert_scale = nn.Parameter(torch.ones(config.n_expert))

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the router reads of x (..., C)."""
        return self.norm(x) * self.scale.to(x.dtype) * x.size(-1) ** -0.5


class MoEAndMLP(MoE):
    """The sum of a mixture and of a gated MLP; both read the block's hidden states, through norms of their own."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.router = _Router(config)
        self.norm_experts, self.post_experts_norm = make_norm(config), make_norm(config)
        self.norm_dense, self.post_dense_norm = make_norm(config), make_norm(config)
        self.dense = GatedMLP(config, config.dense_size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of both for the hidden states x (B, T, C), which no norm has seen."""
        dense = self.post_dense_norm(self.dense(self.norm_dense(x)))
        return dense + self.post_experts_norm(self.mixed(self.norm_experts(x), *self.route(x)))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(self.router(x))
        return (weights * self.router.per_expert_scale[chosen]).to(x.dtype), chosen
