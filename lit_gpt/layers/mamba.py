"""Mamba-2 (arXiv:2405.21060): a state that forgets at a rate of each head's own, which a token sets by its time step.

The state S (N, P) of a head reads a token with input x (P), and B (N), C (N) of its group, for a time dt: S becomes
exp(-dt exp(A_log)) S + dt B x^T, and the output is S^T C + D x.

Letters: B rows, T tokens of each, F features that are kept, V heads of P channels, G groups of them, N channels of the
state.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.layers.conv import CausalConv
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.mixing_kernels import in_kernels, scan_of_whole_texts
from lit_gpt.layers.past import Mixing, Past, Rule, recomputed
from lit_gpt.layers.recurrence import Chunks, decays, flops_of_state, from_chunk_to_chunk


def _scan(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the output of texts that lie end to end, and the state after each, in fp32; see `past.Rule`.

    Args:
        tensors: C and B of each head (tokens, V, N), dt x (tokens, V, P), and the logarithm of the decay, (tokens, V);
            all in fp32.
    """
    chunks = Chunks(lengths, tensors[0].device)
    q, k, v, log_decay = (chunks.cut(x) for x in tensors)
    so_far, decay = decays(log_decay)
    within = q @ k.mT * decay
    return from_chunk_to_chunk(q, k, values=v, so_far=so_far, within=within, chunks=chunks, initial=initial)


class _GatedNorm(nn.Module):
    """RMSNorm over each of G groups of n channels, after the gate."""

    def __init__(self, n: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Returns the norm of y (..., n) in fp32 times silu(gate), in the dtype of the gate."""
        gated = (y * F.silu(gate.float())).unflatten(-1, (self.groups, -1))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * normed.flatten(-2).to(gate.dtype)).to(gate.dtype)


class Mamba2(Mixing):
    """A layer of Mamba-2, as in Granite 4 and Nemotron-H."""

    inputs = ("in_proj",)

    def __init__(self, config: Config, layer: int = 0) -> None:
        super().__init__()
        self.sizes, self.heads, self.groups = config.ssm_sizes, config.ssm_heads, config.ssm_groups
        self.min_step = config.ssm_min_step
        width = self.sizes[0]
        self.in_proj = Linear(config.n_embd, width + sum(self.sizes) + self.heads, bias=False)
        self.conv = CausalConv(sum(self.sizes), config.conv_size, config.conv_bias, silu=True)
        self.A_log = nn.Parameter(torch.arange(1, self.heads + 1, dtype=torch.float32).log())
        self.D, self.dt_bias = (nn.Parameter(torch.ones(self.heads)) for _ in range(2))
        self.norm = _GatedNorm(width, self.groups, config.norm_eps)
        self.out_proj = Linear(width, config.n_embd, bias=False)

    def flops(self, length: float) -> float:
        dk, dv = self.sizes[1] // self.groups, self.sizes[0] // self.heads
        return self.heads * flops_of_state(length, dk, dv, corrects=False)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is kept of each token, (B, T, F), and the gate of the output, (B, T, V P)."""
        gate, kept = self.in_proj(x).split((self.sizes[0], sum(self.sizes) + self.heads), -1)
        return kept, gate

    def mixed(self, kept: Tensor, gate: Tensor, past: Past) -> Tensor:
        """Returns the output of the layer, (B, T, n_embd); see `features`."""
        y = past.run(self._rule(kept, past), self.tensors, kept)  # (B, T, V, P)
        return self.out_proj(self.norm(y.flatten(-2), gate))

    def tensors(self, kept: Tensor, past: Past) -> tuple[Tensor, ...]:
        """Returns the input (B, T, V, P), B and C (B, T, G, N) and time steps (B, T, V) of features (B, T, F)."""
        mixed, dt = kept.split((sum(self.sizes), self.heads), -1)
        x, B, C = self.conv(mixed, past).split(self.sizes, -1)
        B, C = (g.unflatten(-1, (self.groups, -1)) for g in (B, C))
        return x.unflatten(-1, (self.heads, -1)), B, C, dt

    def _rule(self, kept: Tensor, past: Past) -> Rule:
        """Returns what makes the output of the `tensors` of features."""
        A, D, dt_bias = -self.A_log.float().exp(), self.D.float(), self.dt_bias.float()
        if past.whole(kept) is not None:
            rule = scan_of_whole_texts(kept, A, D, dt_bias=dt_bias, min_step=self.min_step)
            if rule is not None:
                return rule
        scan = in_kernels(_scan, "simple_gla", kept)

        def of_heads(
            tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            x, B, C, dt = (t.float() for t in tensors)
            B, C = (g.repeat_interleave(self.heads // self.groups, -2) for g in (B, C))
            dt = F.softplus(dt + dt_bias)
            dt = dt.clamp(min=self.min_step) if self.min_step else dt
            y, states = scan((C, B, x * dt.unsqueeze(-1), A * dt), lengths, initial)
            return y + x * D.unsqueeze(-1), states

        return recomputed(of_heads)
