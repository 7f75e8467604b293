"""The gated delta rule (arXiv:2412.06464): linear attention whose state forgets, and corrects what it has of a key.

The state S (dk, dv) of a head reads a token with key k, value v, decay a and strength b: S becomes
a S + b k (v - a S^T k)^T, and the output is S^T q. Tokens are taken in chunks of L, see `lit_gpt.layers.recurrence`:
within a chunk all corrections come from one triangular system (arXiv:2406.06484, section 3).

Letters: N tokens of all texts, n texts, K key heads, V value heads, dk and dv their channels, M chunks of L tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.layers.conv import CausalConv
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.mixing_kernels import in_kernels
from lit_gpt.layers.norms import RMSNorm
from lit_gpt.layers.past import Mixing, Past, recomputed
from lit_gpt.layers.recurrence import Chunks, decays, flops_of_state, from_chunk_to_chunk


def _gated_delta(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the output (N, V, dv) of texts that lie end to end, and the state after each, (n, V, dk, dv), in fp32.

    Args:
        tensors: queries and keys (N, V, dk), of which queries are scaled; values (N, V, dv); the logarithm of the decay
            and the strength, (N, V); all in fp32.
        lengths: number of tokens of each text.
        initial: state before each text, (n, V, dk, dv); None means zeros.
    """
    chunks = Chunks(lengths, tensors[0].device)
    q, k, v, log_decay, strength = (chunks.cut(x) for x in tensors)
    so_far, decay = decays(log_decay)
    strong = k * strength.unsqueeze(-1)
    system = (strong @ k.mT * decay).tril(-1)  # (M, V, L, L)
    right = torch.cat((v * strength.unsqueeze(-1), strong * so_far.exp().unsqueeze(-1)), -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    values, of_state = solved.split((v.size(-1), k.size(-1)), -1)
    within = q @ k.mT * decay
    return from_chunk_to_chunk(
        q, k, values=values, so_far=so_far, within=within, chunks=chunks, initial=initial, of_state=of_state
    )


class GatedDeltaNet(Mixing):
    """A layer with the gated delta rule, as in Qwen3-Next and Qwen3.5.

    Queries, keys and values pass a short convolution; V / K value heads in a row share a key head.
    """

    inputs = ("in_qkv", "in_z")

    def __init__(self, config: Config, layer: int = 0) -> None:
        super().__init__()
        self.sizes = config.delta_sizes
        self.K, self.V = config.delta_key_heads, config.delta_value_heads
        self.in_qkv = Linear(config.n_embd, sum(self.sizes), bias=False)
        self.in_z = Linear(config.n_embd, self.sizes[2], bias=False)
        self.in_b, self.in_a = (Linear(config.n_embd, self.V, bias=False) for _ in range(2))
        self.conv = CausalConv(sum(self.sizes), config.conv_size, bias=False, silu=True)
        self.A_log = nn.Parameter(torch.zeros(self.V))
        self.dt_bias = nn.Parameter(torch.ones(self.V))
        self.norm = RMSNorm(config.delta_value_size, config.norm_eps)
        self.out_proj = Linear(self.sizes[2], config.n_embd, bias=False)

    def flops(self, length: float) -> float:
        dk, dv = (self.sizes[0] // self.K, self.sizes[2] // self.V)
        return self.V * flops_of_state(length, dk, dv, corrects=True)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is kept of each token, (B, T, F), and the gate of the output, (B, T, V dv)."""
        return torch.cat([layer(x) for layer in (self.in_qkv, self.in_b, self.in_a)], -1), self.in_z(x)

    def mixed(self, kept: Tensor, gate: Tensor, past: Past) -> Tensor:
        """Returns the output of the layer, (B, T, C); see `features`."""
        rule = in_kernels(_gated_delta, "gated_delta_rule", kept)
        y = past.run(recomputed(rule), self.tensors, kept)  # (B, T, V, dv) in fp32
        y = self.norm(y.to(kept.dtype))
        y = (y.float() * F.silu(gate.unflatten(-1, (self.V, -1)).float())).to(kept.dtype)
        return self.out_proj(y.flatten(-2))

    def tensors(self, kept: Tensor, past: Past) -> tuple[Tensor, ...]:
        """Returns the arguments of `_gated_delta`, (B, T, V, ...), for features (B, T, F)."""
        n = sum(self.sizes)
        qkv, b, a = kept.split((n, self.V, self.V), -1)
        q, k, v = self.conv(qkv, past).split(self.sizes, -1)
        q, k = (x.unflatten(-1, (self.K, -1)).repeat_interleave(self.V // self.K, -2).float() for x in (q, k))
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        log_decay = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        v = v.unflatten(-1, (self.V, -1)).float()
        return q * q.size(-1) ** -0.5, k, v, log_decay, b.sigmoid().float()
