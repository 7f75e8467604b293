"""Rotary position embeddings (RoPE, https://arxiv.org/abs/2104.09864) and the ways in which models scale them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.layer_heads import of_full_layers

_CosSin = tuple[Tensor, Tensor]
"""cos and sin of the rotation angles of the n rotated channels of a head, (..., T, n) each."""


class Rope(nn.Module):
    """A module that computes cos and sin of the rotation angles at each call.

    Everything is fp32 whatever the default dtype: in 16 bits, positions above 256 would coincide.
    """

    theta: Tensor
    long_theta: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        device = torch.get_default_device()
        self.kinds = [config.rotation(i) for i in range(config.n_layer)]
        self.others = sorted(set(self.kinds) - {"usual"})
        with torch.device("cpu"):  # arithmetic on the meta device would import torch's compiler, for a second
            theta, self.magnitude = frequencies(of_full_layers(config))
            others = {kind: _OTHER_ROTATIONS[kind](config) for kind in self.others}
        self.register_buffer("theta", theta.to(device), persistent=False)  # (n / 2,)
        for kind, other in others.items():
            self.register_buffer(f"{kind}_theta", other.to(device), persistent=False)
        scaling = config.rope_scaling or {}
        self.long_from = scaling["original_max_position_embeddings"] if scaling.get("type") == "longrope" else None
        if self.long_from is not None:
            with torch.device("cpu"):
                theta = _divided(config, scaling["long_factor"])
            self.register_buffer("long_theta", theta.to(device), persistent=False)

    def forward(self, positions: Tensor, length: int) -> _CosSin:
        """Returns cos and sin, (..., T, n) each, of the layers with the model's usual rotation.

        Args:
            positions: positions of the tokens in their sequences, (..., T).
            length: final length of the sequence; LongRoPE has other frequencies for long sequences.
        """
        theta = self.long_theta if self.long_from is not None and length > self.long_from else self.theta
        return _cos_sin(positions, theta, self.magnitude)

    def of_layers(self, positions: Tensor, length: int) -> list[_CosSin]:
        """Returns cos and sin for each layer, (..., T, n) each; layers with the same rotation share tensors.

        Args:
            positions, length: see `forward`.
        """
        return self.spread(self(positions, length), positions)

    def packed(self, positions: Tensor, lengths: Sequence[int], ends: Sequence[int]) -> list[_CosSin]:
        """Returns cos and sin for each layer, (T, n) each, of packed sequences.

        Args:
            positions: positions of the tokens in their sequences, (T,).
            lengths: lengths of the sequences, T in sum.
            ends: final lengths of the sequences, with what is not computed of them.
        """
        if self.long_from is None:
            return self.of_layers(positions, max(ends))
        parts = [self(part, end) for part, end in zip(positions.split(tuple(lengths)), ends, strict=True)]
        cos, sin = zip(*parts, strict=True)
        return self.spread((torch.cat(cos), torch.cat(sin)), positions)

    def spread(self, usual: _CosSin, positions: Tensor) -> list[_CosSin]:
        """Returns cos and sin for each layer: `usual`, or those of the layer's own kind of rotation."""
        others = {kind: _cos_sin(positions, self.get_buffer(f"{kind}_theta")) for kind in self.others}
        return [({"usual": usual} | others)[kind] for kind in self.kinds]


def _cos_sin(positions: Tensor, theta: Tensor, magnitude: float = 1.0) -> _CosSin:
    """Returns cos and sin, (..., T, n) each, for positions (..., T) and frequencies (n / 2,)."""
    angle = positions.float().unsqueeze(-1) * theta
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos() * magnitude, angle.sin() * magnitude


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (B, H, T, D) with the first n channels of each head rotated.

    Args:
        cos, sin: (..., T, n).
    """
    n = cos.size(-1)
    rotated, rest = x[..., :n], x[..., n:]
    a, b = rotated.chunk(2, dim=-1)
    rotated = (rotated * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.size(-1) else rotated


def frequencies(config: Config) -> tuple[Tensor, float]:
    """Returns the frequencies, (rope_n_elem / 2,), and the factor that cos and sin are multiplied by.

    A frequency is the angle per position by which a pair of channels is rotated.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return plain(config) / config.rope_condense_ratio, 1.0
    return _SCALINGS[scaling["type"]](config, scaling)


def plain(config: Config) -> Tensor:
    """Returns the frequencies without scaling, (rope_n_elem / 2,)."""
    return _by_base(config, config.rope_base)


def _local(config: Config) -> Tensor:
    return _by_base(config, config.rope_local_base)


def _by_base(config: Config, base: float) -> Tensor:
    n = config.rope_n_elem
    return base ** -(torch.arange(0, n, 2, dtype=torch.float32) / n)


def _no_rotation(config: Config) -> Tensor:
    """Returns frequencies of zero: a layer without rotation (NoPE) then runs the same kernels as the others."""
    return torch.zeros(config.rope_n_elem // 2, dtype=torch.float32)


_OTHER_ROTATIONS: dict[str, Callable[[Config], Tensor]] = {"none": _no_rotation, "local": _local}
"""Kind of rotation, other than the usual one -> function of its frequencies, (rope_n_elem / 2,)."""


def _divided(config: Config, factors: list[float]) -> Tensor:
    return plain(config) / torch.tensor(factors, dtype=torch.float32)


def _llama3(config: Config, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """Scales as Llama 3.1 does: stretches long wavelengths by `factor`, keeps short ones, and interpolates in between.

    Source: https://github.com/meta-llama/llama-models, `apply_scaling`; parameters as in Hugging Face's config.json.
    """
    theta = plain(config)
    rotations = scaling["original_max_position_embeddings"] * theta / (2 * math.pi)  # over the pretraining length
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return theta * (kept + (1 - kept) / scaling["factor"]), 1.0


def _yarn(config: Config, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """Scales as YaRN does: mixes kept and stretched frequencies by a ramp over channels, and sharpens attention.

    Source: https://arxiv.org/abs/2309.00071 section 3.2.
    """
    n, factor = config.rope_n_elem, scaling["factor"]
    original = scaling.get("original_max_position_embeddings") or config.block_size

    def channel(rotations: float) -> float:
        """Returns the index, unrounded, of the channel pair that makes `rotations` rotations in `original` tokens."""
        return n * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_base))

    first, last = channel(scaling.get("beta_fast") or 32), channel(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, n - 1)
    stretched = ((torch.arange(n // 2, dtype=torch.float32) - first) / max(last - first, 0.001)).clamp(0, 1)
    theta = plain(config)

    def sharpness(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        m, m_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        magnitude = sharpness(m) / sharpness(m_all) if m and m_all else sharpness(1.0)
    return theta * (1 - stretched) + theta / factor * stretched, float(magnitude)


def _longrope(config: Config, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """Scales as LongRoPE does for short sequences: divides each frequency by a factor of its own.

    Source: https://arxiv.org/abs/2402.13753. `Rope` applies the factors of long sequences.
    """
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or config.block_size / original
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return _divided(config, scaling["short_factor"]), float(magnitude)


def _proportional(config: Config, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """Rotates the fastest pairs of a whole head only, a share of them; the others stand still (Gemma 4)."""
    theta = plain(config) / scaling.get("factor", 1.0)
    n = int(scaling.get("partial_rotary_factor", 1.0) * config.rope_n_elem // 2)
    return torch.cat((theta[:n], torch.zeros_like(theta[n:]))), 1.0


_SCALINGS: dict[str, Callable[[Config, dict[str, Any]], tuple[Tensor, float]]] = {
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
