"""The norms of a model: RMS and layer norms, also of each head's queries and keys."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.layers.recompute import RMSNormFunction, recomputable, rms_norm


class RMSNorm(nn.Module):
    """https://arxiv.org/abs/1910.07467; statistics in fp32 whatever the dtype of the input."""

    def __init__(self, n: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.zeros(n) if unit_offset else torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            y = RMSNormFunction.apply(x, self.weight, self.eps, self.unit_offset)
        else:
            y = rms_norm(x, self.weight, self.eps, self.unit_offset)
        return recomputable(y, self.forward, x)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # in fp32 where they train
        return recomputable(F.layer_norm(x, self.normalized_shape, weight, bias, self.eps), self.forward, x)


class _PerHeadNorm(nn.Module):
    """Layer norm over the channels of each head, without bias, with a weight for each head."""

    def __init__(self, heads: int, head_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, head_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, D)."""
        return (F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight.unsqueeze(1)).to(x.dtype)


def make_norm(config: Config, present: bool = True, n: int | None = None) -> nn.Module:
    """The model's kind of norm over `n` channels, n_embd if not given; nothing if it is not `present`."""
    if not present:
        return nn.Identity()
    if config.norm == "layer":
        return LayerNorm(n or config.n_embd, eps=config.norm_eps)
    return RMSNorm(n or config.n_embd, config.norm_eps, config.norm_unit_offset)


def make_qk_norm(config: Config, heads: int) -> nn.Module:
    """The norm of the queries or the keys of so many heads."""
    if config.qk_norm == "per_head":
        return _PerHeadNorm(heads, config.head_size, config.norm_eps)
    n = {"none": 0, "head": config.head_size, "full": heads * config.head_size}[config.qk_norm]
    return make_norm(config, n > 0, n)
