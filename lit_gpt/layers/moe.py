"""Mixtures of experts (MoE, https://arxiv.org/abs/2401.04088 section 2.1): routers choose K MLPs for each token.

Letters: C n_embd, N tokens of a batch, K experts per token, E experts, R = N K rows, sorted by expert.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.config import Config
from lit_gpt.layers.dropout import Draws
from lit_gpt.layers.experts import of_all
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.mlp import GatedMLP, PlainMLP


class MoE(nn.Module):
    """A mixture of MLPs, and of one that all tokens go through, if the model has it.

    Rows are sorted by expert, so that each expert multiplies one contiguous slice of them. Where the layers of all
    experts are frozen, or have low-rank updates, each is computed for all experts in one pass.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.n_expert_per_token = config, config.n_expert_per_token
        self.gate = Linear(config.n_embd, config.n_expert, bias=config.router_bias)
        bias = torch.zeros(config.n_expert, dtype=torch.float32) if config.router_choice_bias else None
        self.register_buffer("e_score_correction_bias", bias)
        kind, latent = PlainMLP if config.plain_experts else GatedMLP, config.latent_size
        self.latent_in = Linear(config.n_embd, latent, bias=False) if latent else None
        of_expert = replace(config, n_embd=latent) if latent else config
        self.experts = nn.ModuleList(kind(of_expert) for _ in range(config.n_expert))
        self.latent_out = Linear(latent, config.n_embd, bias=False) if latent else None
        size = config.shared_expert_size
        self.shared = kind(config, size) if size else None
        self.shared_gate = Linear(config.n_embd, 1, bias=False) if config.shared_expert_gate else None
        self.draws = Draws()
        """What the experts' dropout draws from; the model's own, once it is in one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x, *self.route(x))

    def mixed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Returns the output of the mixture for x (..., C), N tokens in all.

        Args:
            weights, chosen: see `route`.
        """
        order = chosen.flatten().argsort(stable=True)  # sorts the choices by expert
        slots = order.argsort()  # the inverse permutation: where each choice lies in the sorted order
        read = x if self.latent_in is None else self.latent_in(x)
        rows = _ToExperts.apply(read.flatten(0, -2), order, slots)  # (R, C)
        if self.config.router == "sigmoid_of_inputs":
            rows = rows * weights.flatten().index_select(0, order).unsqueeze(1)
            weights = torch.ones_like(weights)
        keys = self.draws.keys
        of_rows = None if keys is None else keys.index_select(0, order // self.n_expert_per_token)
        outputs = self.of_experts(rows, self.counts(chosen), of_rows)
        self.draws.keys = keys
        y = weights.unsqueeze(1) @ outputs.index_select(0, slots).unflatten(0, chosen.shape)  # (N, 1, C)
        y = y.view_as(read)
        if self.latent_out is not None:
            y = self.latent_out(y)
        if self.shared is None:
            return y
        beside = self.shared(x)
        return y + (beside if self.shared_gate is None else beside * self.shared_gate(x).sigmoid())

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights of the experts that each token goes through, and which they are, (N, K) both.

        Args:
            x: (..., C), N tokens in all.
        """
        c, logits = self.config, self.gate(x).flatten(0, -2)
        if c.router == "softmax":  # of the chosen ones, or of all and then divided by the sum of the chosen: the same
            scores, chosen = logits.topk(self.n_expert_per_token)
            return scores.softmax(-1, dtype=torch.float32).to(x.dtype), chosen
        scores = logits.float().sigmoid()
        wanted = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if c.router_groups > 1:
            wanted = _within_groups(wanted, c.router_groups, c.router_groups_per_token)
        chosen = wanted.topk(self.n_expert_per_token).indices
        weights = scores.gather(1, chosen)
        if c.router == "sigmoid":
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.router_scale
        return weights.to(x.dtype), chosen

    def of_experts(self, rows: Tensor, counts: Sequence[int], keys: Tensor | None) -> Tensor:
        """Returns the outputs of the experts for their rows, (R, C).

        Args:
            keys: of the rows, for dropout.
        """
        self.draws.keys = keys
        y = self.in_one_pass(rows, counts)
        if y is not None:
            return y
        # in training, experts without rows run too: their gradient is zero then, not None, and momentum is updated
        found, parts = [], rows.split(tuple(counts))
        of_parts = None if keys is None else keys.split(tuple(counts))
        for i, (expert, part) in enumerate(zip(self.experts, parts, strict=True)):
            if len(part) or torch.is_grad_enabled():
                self.draws.keys = None if of_parts is None else of_parts[i]
                found.append(expert(part))
        return torch.cat(found)

    def in_one_pass(self, rows: Tensor, counts: Sequence[int]) -> Tensor | None:
        """Returns what `of_experts` returns; None if the experts are of a kind that is called one by one."""
        first = self.experts[0]
        if not isinstance(first, GatedMLP | PlainMLP) or "activation" in first._modules:  # one with weights
            return None
        if not (torch.is_grad_enabled() or hasattr(getattr(first, first.ups[0]), "of_experts")):
            return None
        ups = []
        for name in first.ups:
            if (up := of_all([expert.get_submodule(name) for expert in self.experts], rows, counts)) is None:
                return None
            ups.append(up)
        return of_all([expert.get_submodule("proj") for expert in self.experts], first.activated(*ups), counts)

    def counts(self, chosen: Tensor) -> list[int]:
        """Returns the number of rows of each expert, for the experts (N, K) that tokens go through."""
        n = self.config.n_expert
        if chosen.is_meta:  # without values, when operations are counted: an equal share for each
            return [len(part) for part in torch.empty(chosen.numel(), device="meta").tensor_split(n)]
        return chosen.flatten().bincount(minlength=n).tolist()


def _within_groups(scores: Tensor, n: int, n_chosen: int) -> Tensor:
    """Returns the scores (N, E) of the experts in the chosen ones of n groups, minus infinity in the others.

    A group is as good as its two best experts together (arXiv:2412.19437, section 2.1.2).
    """
    groups = scores.unflatten(1, (n, -1))  # (N, n, E / n)
    chosen = groups.topk(min(2, groups.size(-1)), dim=-1).values.sum(-1).topk(n_chosen, dim=-1).indices
    left_out = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, chosen, False)
    return groups.masked_fill(left_out.unsqueeze(-1), -torch.inf).flatten(1)


class _ToExperts(Function):
    """Copies each row of (N, C) to the K slots of its choices, sorted by expert: (R, C).

    The gradient adds up each token's choices in a fixed order, so that it is deterministic on a GPU, too.

    Args:
        order: (R,), the choices sorted by expert; choice i belongs to token i // K.
        slots: (R,), the inverse permutation of `order`.
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
