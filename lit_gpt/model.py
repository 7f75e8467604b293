"""The decoder, all of it in this file.

Shapes in comments: B batch, T tokens, C = n_embd, H query heads, G = n_query_groups key/value heads, D = head_size,
V = padded_vocab_size, S = length of the KV cache.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.errors import UserError


class GPT(nn.Module):
    """A decoder-only transformer of the shape `config`.

    Its weights are those of a checkpoint: `transformer.wte`, `transformer.h.{i}.*`, `transformer.ln_f`, `lm_head`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": make_norm(config),
            }
        )
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        cos, sin = rope_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, idx: Tensor, input_pos: Tensor | None = None, cache: "KVCache | None" = None) -> Tensor:
        """Next-token logits, (B, T, V).

        Args:
            idx: token ids, (B, T).
            input_pos: positions of `idx` in their sequences, (T,) or a row each, (B, T); None means 0 .. T-1.
            cache: keys and values of the positions before; those of `idx` are written into it.

        Raises:
            UserError: `idx` is longer than the model's block_size.
        """
        return self.lm_head(self.hidden(idx, input_pos, cache))

    def hidden(self, idx: Tensor, input_pos: Tensor | None = None, cache: "KVCache | None" = None) -> Tensor:
        """`forward` without the output projection, (B, T, C): whoever needs few positions projects only those."""
        T = idx.size(1)
        if self.config.block_size < T:
            raise UserError(f"a sequence of {T} tokens is longer than the model's {self.config.block_size}")
        if input_pos is None:
            cos, sin = self.cos[:T], self.sin[:T]  # (T, rope_n_elem)
        else:
            cos, sin = self.cos[input_pos], self.sin[input_pos]
            if input_pos.dim() == 2:
                cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (B, 1, T, rope_n_elem), the same for all heads
        mask = None if cache is None else cache.visible_from(input_pos, T)

        x = self.transformer.wte(idx)  # (B, T, C)
        for i, block in enumerate(self.transformer.h):
            x = block(x, cos, sin, mask, None if cache is None else cache.layers[i], input_pos)
        return self.transformer.ln_f(x)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.norm_1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.norm_2 = make_norm(config)
        self.mlp = MLPS[config.mlp](config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: "LayerCache | None" = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        h = x + self.attn(self.norm_1(x), cos, sin, mask, cache, input_pos)
        return h + self.mlp(self.norm_2(x if self.parallel_residual else h))


class CausalSelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embd, sum(config.qkv_sizes), bias=config.bias)
        self.proj = nn.Linear(config.n_head * config.head_size, config.n_embd, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: "LayerCache | None" = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        q, k, v = self.split_heads(self.qkv(x))
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, input_pos)  # (B, G, S, D)
        grouped = self.config.n_query_groups != self.config.n_head
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, sum(qkv_sizes)) -> q (B, H, T, D), k and v (B, G, T, D)."""
        parts = qkv.split(self.config.qkv_sizes, dim=-1)
        q, k, v = (p.unflatten(-1, (-1, self.config.head_size)).transpose(1, 2) for p in parts)
        return q, k, v


class GeluMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x)))


class SwigluMLP(nn.Module):
    """Gated MLP, https://arxiv.org/abs/2002.05202 equation 6: `fc_1` is the gate."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.fc_2 = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class RMSNorm(nn.Module):
    """https://arxiv.org/abs/1910.07467; statistics in fp32 whatever the dtype of the input."""

    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


MLPS = {"gelu": GeluMLP, "swiglu": SwigluMLP}
NORMS = {"layer": nn.LayerNorm, "rms": RMSNorm}


def make_norm(config: Config) -> nn.Module:
    return NORMS[config.norm](config.n_embd, eps=config.norm_eps)


class KVCache:
    """Keys and values of the tokens seen so far, for every layer of `model` and up to `length` positions a row.

    Whoever generates makes one, hands it to each call, and drops it. Rows may be at different positions: a query at
    position p sees positions 0 .. p of its row, so that what is left from padding further on is never seen.
    """

    def __init__(self, model: GPT, batch_size: int, length: int) -> None:
        c = model.config
        if length > c.block_size:
            raise UserError(f"{length} tokens are more than the model's {c.block_size}")
        like = model.transformer.wte.weight
        shape = (batch_size, c.n_query_groups, length, c.head_size)
        self.layers = [LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(c.n_layer)]
        self.positions = torch.arange(length, device=like.device)

    def visible_from(self, input_pos: Tensor | None, T: int) -> Tensor:
        """Which cached positions each query sees, (T, S) or (B, 1, T, S) bool."""
        if input_pos is None:
            input_pos = self.positions[:T]
        visible = self.positions <= input_pos.unsqueeze(-1)  # (..., T, S)
        return visible.unsqueeze(1) if visible.dim() == 3 else visible


class LayerCache:
    """Keys and values of one layer, (B, G, S, D) each."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def update(self, k: Tensor, v: Tensor, input_pos: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write k and v, (B, G, T, D), at `input_pos`; returns all that is cached."""
        if input_pos is None:
            input_pos = torch.arange(k.size(2), device=k.device)
        for cached, new in ((self.k, k), (self.v, v)):
            new = new.to(cached.dtype)
            if input_pos.dim() == 1:
                cached.index_copy_(2, input_pos, new)
            else:
                cached.scatter_(2, input_pos[:, None, :, None].expand_as(new), new)
        return self.k.to(k.dtype), self.v.to(v.dtype)


def rope_table(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles, (block_size, rope_n_elem) each (https://arxiv.org/abs/2104.09864).

    In fp32 whatever the default dtype: in 16 bits, positions above 256 would coincide.
    """
    n = config.rope_n_elem
    theta = config.rope_base ** -(torch.arange(0, n, 2, dtype=torch.float32) / n)  # (n/2,)
    position = torch.arange(config.block_size, dtype=torch.float32) / config.rope_condense_ratio
    angle = torch.outer(position, theta).repeat(1, 2)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of each head of x (B, H, T, D), as many as `cos` has; the others pass."""
    n = cos.size(-1)
    rotated, rest = x[..., :n], x[..., n:]
    a, b = rotated.chunk(2, dim=-1)
    rotated = (rotated * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.size(-1) else rotated
