"""The norms of a model: RMSNorm and LayerNorm, also on the queries and keys of each head (QK norm)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.layers.recompute import RMSNormFunction, recomputable, rms_norm


class RMSNorm(nn.Module):
    """RMSNorm, https://arxiv.org/abs/1910.07467, with statistics in fp32 whatever the dtype of the input.

    Args:
        n: channels.
        unit_offset: scale by 1 + weight, as Gemma does.
    """

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
    """A LayerNorm whose output may be recomputed from its input in the backward pass.

    Args:
        unit_offset: scale by 1 + weight, as Nemotron does; the sum is rounded to the dtype of the weight.
    """

    def __init__(self, n: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__(n, eps=eps)
        self.unit_offset = unit_offset
        if unit_offset:
            nn.init.zeros_(self.weight)

    @property
    def scale(self) -> Tensor:
        """The factor of each channel."""
        return 1 + self.weight if self.unit_offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.scale.to(x.dtype), self.bias.to(x.dtype)  # parameters that train are fp32
        return recomputable(F.layer_norm(x, self.normalized_shape, weight, bias, self.eps), self.forward, x)


class PerHeadNorm(nn.Module):
    """A LayerNorm over the channels of each head, without bias, with a weight of its own for each head."""

    def __init__(self, heads: int, head_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, head_size))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (B, H, T, D) normalized over D and scaled."""
        return (F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.weight.unsqueeze(1)).to(x.dtype)


class UnweightedNorm(nn.Module):
    """RMSNorm without a weight, with statistics in fp32."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def make_norm(config: Config, present: bool = True, n: int | None = None) -> nn.Module:
    """Returns the model's norm over `n` channels (default n_embd), or `nn.Identity` if it is not `present`."""
    if not present:
        return nn.Identity()
    if config.norm == "layer":
        return LayerNorm(n or config.n_embd, config.norm_eps, config.norm_unit_offset)
    return RMSNorm(n or config.n_embd, config.norm_eps, config.norm_unit_offset)


def make_value_norm(config: Config) -> nn.Module:
    """Returns the norm of the values of each head; `nn.Identity` if they have none."""
    return UnweightedNorm(config.norm_eps) if config.value_norm else nn.Identity()


def make_qk_norm(config: Config, heads: int, layer: int = 0) -> nn.Module:
    """Returns the QK norm of `heads` heads of queries or keys in a layer; `nn.Identity` if it has none."""
    if config.qk_norm == "unweighted":
        return nn.Identity() if config.rotation(layer) == "none" else UnweightedNorm(config.norm_eps)
    if config.qk_norm == "per_head":
        return PerHeadNorm(heads, config.head_size, config.norm_eps)
    n = {"none": 0, "head": config.head_size, "full": heads * config.head_size}[config.qk_norm]
    return make_norm(config, n > 0, n)
