"""The gated delta rule (arXiv:2412.06464): linear attention whose state forgets, and corrects what it has of a key.

The state S (dk, dv) of a head reads a token with key k, value v, decay a and strength b: S becomes
a S + b k (v - a S^T k)^T, and the output is S^T q. Tokens are taken in chunks of L: within a chunk all corrections come
from one triangular system (arXiv:2406.06484, section 3), and the state goes from chunk to chunk.

Letters: N tokens of all texts, n texts, K key heads, V value heads, dk and dv their channels, M chunks of L tokens.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gpt.config import Config
from lit_gpt.layers.conv import CausalConv
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.norms import RMSNorm
from lit_gpt.layers.past import Mixing, Past

_CHUNK = 64


def _gated_delta(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the output (N, V, dv) of texts that lie end to end, and the state after each, (n, V, dk, dv), in fp32.

    Args:
        tensors: queries and keys (N, V, dk), of which queries are scaled; values (N, V, dv); the logarithm of the decay
            and the strength, (N, V); all in fp32.
        lengths: number of tokens of each text.
        initial: state before each text, (n, V, dk, dv); None means zeros.
    """
    q, k, v, log_decay, strength = tensors
    L = min(_CHUNK, max(lengths))
    n_chunks = [-(-n // L) for n in lengths]
    slots = _slots(tuple(lengths), L).to(q.device)

    def chunked(x: Tensor) -> Tensor:
        """Returns x (N, V, ...) in chunks, (M, V, L, ...); padding is zeros, which change no state."""
        padded = x.new_zeros(sum(n_chunks) * L, *x.shape[1:]).index_copy(0, slots, x)
        return padded.unflatten(0, (-1, L)).transpose(1, 2)

    q, k, v, log_decay, strength = (chunked(x) for x in (q, k, v, log_decay, strength))
    so_far = log_decay.cumsum(-1)  # (M, V, L)
    later = torch.ones(L, L, dtype=torch.bool, device=q.device).triu(1)
    decay = (so_far.unsqueeze(-1) - so_far.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
    strong = k * strength.unsqueeze(-1)
    system = (strong @ k.mT * decay).tril(-1)  # (M, V, L, L)
    right = torch.cat((v * strength.unsqueeze(-1), strong * so_far.exp().unsqueeze(-1)), -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    values, of_state = solved.split((v.size(-1), k.size(-1)), -1)
    within = q @ k.mT * decay
    q = q * so_far.exp().unsqueeze(-1)
    k = k * (so_far[..., -1:] - so_far).exp().unsqueeze(-1)
    whole = so_far[..., -1, None, None].exp()  # (M, V, 1, 1)
    ends = list(accumulate(n_chunks))
    outputs: list[Tensor] = [values] * len(values)
    states = list(initial) if initial is not None else [v.new_zeros(v.size(1), k.size(-1), v.size(-1))] * len(lengths)
    for step in range(max(n_chunks)):  # all texts that are so long at once
        here = [i for i, n in enumerate(n_chunks) if n > step]
        at = [ends[i] - n_chunks[i] + step for i in here]
        S = torch.stack([states[i] for i in here])
        new = values[at] - of_state[at] @ S
        y = q[at] @ S + within[at] @ new
        S = S * whole[at] + k[at].mT @ new
        for i, chunk, state, output in zip(here, at, S, y, strict=True):
            states[i], outputs[chunk] = state, output
    y = torch.stack(outputs).transpose(1, 2).flatten(0, 1)  # (M L, V, dv)
    return y.index_select(0, slots), torch.stack(states)


def _slots(lengths: tuple[int, ...], L: int) -> Tensor:
    """Returns the slot of each token in chunks of L of which every text begins a new one, (N,)."""
    starts = [0, *accumulate(-(-n // L) * L for n in lengths)]
    return torch.cat([torch.arange(n) + start for n, start in zip(lengths, starts, strict=False)])


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
        self.conv = CausalConv(sum(self.sizes), config.conv_size, bias=False)
        self.A_log = nn.Parameter(torch.zeros(self.V))
        self.dt_bias = nn.Parameter(torch.ones(self.V))
        self.norm = RMSNorm(config.delta_value_size, config.norm_eps)
        self.out_proj = Linear(self.sizes[2], config.n_embd, bias=False)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is kept of each token, (B, T, F), and the gate of the output, (B, T, V dv)."""
        return torch.cat([layer(x) for layer in (self.in_qkv, self.in_b, self.in_a)], -1), self.in_z(x)

    def mixed(self, kept: Tensor, gate: Tensor, past: Past) -> Tensor:
        """Returns the output of the layer, (B, T, C); see `features`."""
        y = past.run(_rule, self.tensors, kept)  # (B, T, V, dv) in fp32
        y = self.norm(y.to(kept.dtype))
        y = (y.float() * F.silu(gate.unflatten(-1, (self.V, -1)).float())).to(kept.dtype)
        return self.out_proj(y.flatten(-2))

    def tensors(self, kept: Tensor, past: Past) -> tuple[Tensor, ...]:
        """Returns the arguments of `_gated_delta`, (B, T, V, ...), for features (B, T, F)."""
        n = sum(self.sizes)
        qkv, b, a = kept.split((n, self.V, self.V), -1)
        q, k, v = F.silu(self.conv(qkv, past)).split(self.sizes, -1)
        q, k = (x.unflatten(-1, (self.K, -1)).repeat_interleave(self.V // self.K, -2).float() for x in (q, k))
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        log_decay = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias.float())
        v = v.unflatten(-1, (self.V, -1)).float()
        return q * q.size(-1) ** -0.5, k, v, log_decay, b.sigmoid().float()


def _rule(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Does what `_gated_delta` does; what it computes on the way is computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return _gated_delta(tensors, lengths, initial)
    return checkpoint(_gated_delta, tensors, lengths, initial, use_reentrant=False)
