"""Causal self-attention with rotary embeddings and query groups, for decoding and for packed documents.

Shapes: B batch, T tokens, C n_embd, H query heads, G key/value heads, D head_size, S positions of the KV cache.
"""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.layer_heads import kv_source, kv_sources, of_layer, stacked_sizes
from lit_gpt.layers.attention import Documents, Heads, PackedAttention, softmax_with_sinks
from lit_gpt.layers.cpu_matmul import upcast
from lit_gpt.layers.linear import Linear
from lit_gpt.layers.norms import make_qk_norm, make_value_norm
from lit_gpt.layers.per_layer import Carried
from lit_gpt.layers.rope import apply_rope


class CausalSelfAttention(nn.Module):
    """Causal self-attention with rotary embeddings and query groups (GQA), for decoding and for packed documents."""

    def __init__(self, config: Config, layer: int = 0) -> None:
        super().__init__()
        self.layer, self.source, self.is_source = layer, kv_source(config, layer), layer in kv_sources(config)
        self.stacked = stacked_sizes(config, layer)
        """Channels of q, k and v of `qkv`; none of what the layer takes elsewhere."""
        self.config = config = of_layer(config, layer)
        self.heads = Heads(
            sizes=config.qkv_sizes,
            head_size=config.head_size,
            scale=score_scale(config),
            softcap=config.attn_logit_softcapping,
            window=config.sliding_window if config.is_sliding(layer) else 0,
        )
        self.qkv = Linear(config.n_embd, sum(self.stacked), bias=config.qkv_bias)
        self.proj = Linear(config.n_head * config.head_size, config.n_embd, bias=config.proj_bias)
        self.norm_q, self.norm_k = (
            make_qk_norm(config, heads, layer) for heads in (config.n_head, config.n_query_groups)
        )
        self.norm_v = make_value_norm(config)
        if self.source != layer:
            self.norm_k = nn.Identity()
        n_gates = config.n_head * config.head_size if config.attention_gate else 0
        self.out_gate = Linear(config.n_embd, n_gates, bias=False) if n_gates else None
        self.sinks = nn.Parameter(torch.zeros(config.n_head)) if config.attention_sinks else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: Any = None,
        input_pos: Tensor | None = None,
        documents: Documents | None = None,
        carried: Carried | None = None,
    ) -> Tensor:
        """Returns the projected output of attention, (B, T, C).

        Args:
            x: (B, T, C).
            cos, sin: (T, rope_n_elem) or (B, 1, T, rope_n_elem).
            mask: True where a query sees a key, (T, S) or (B, 1, T, S) bool; None means plain causal attention.
            documents: the documents packed in x, (1, T, C); queries see keys of their own document only.
            carried: what the pass takes along; packed, keys are not rotated there.
        """
        q, k, v = self.split_heads(qkv := self.qkv(x), cos, sin)
        if self.config.rotates_first:
            cos, sin = cos[..., :0], sin[..., :0]  # nothing is left to rotate
        if documents is not None:
            k, v = self.exchanged(k, v, carried)
            if self.config.qk_norm != "none":
                qkv = torch.cat([p.transpose(1, 2).flatten(2) for p in (q, k, v)], -1)
            y = self.attended_packed(qkv.flatten(0, 1), cos, sin, documents)  # a view: no copy, nor in backward
            return self.projected(y.unsqueeze(0), x)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None and self.source == self.layer:
            k, v = cache.update(k, v, input_pos)  # (B, G, S, D)
        k, v = self.exchanged(k, v, carried)
        y = self.attended(q, k, v, mask)
        return self.projected(y.transpose(1, 2).flatten(2), x)  # (B, H, T, D) -> (B, T, C)

    def exchanged(self, k: Tensor, v: Tensor, carried: Carried | None) -> tuple[Tensor, Tensor]:
        """Returns the keys and values that the layer attends to: its own, kept for others too, or an earlier one's."""
        if carried is not None and self.is_source:
            carried.kv[self.layer] = k, v
        return (k, v) if carried is None or self.source == self.layer else carried.kv[self.source]

    def projected(self, y: Tensor, x: Tensor) -> Tensor:
        """Returns the output of the layer, (B, T, C), for that of all heads, (B, T, H * D), and the layer's input."""
        return self.proj(y if self.out_gate is None else y * self.out_gate(x).sigmoid())

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the output of each head, (B, H, T, D).

        Args:
            q, k, v: (B, H, T, D), (B, G, S, D) and (B, G, S, D); q and k are rotated.
        """
        return attend(q, k, v, mask=mask, config=self.config, sinks=self.sinks)

    def attended_packed(self, qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents) -> Tensor:
        """Returns the output of all heads, (T, H * D), for packed qkv, (T, sum(qkv_sizes)), not rotated yet."""
        return PackedAttention.apply(qkv, cos, sin, documents, self.heads, self.sinks)

    def beside(self, dtype: torch.dtype) -> nn.Module | None:
        """Returns a module whose output is added to that of attention in decoding, or None to add nothing.

        The module maps rotated queries (B, H, T, D) to a summand of the same shape.

        Args:
            dtype: dtype of the keys and values that the module keeps.
        """
        return None

    def split_heads(
        self, qkv: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Splits qkv (B, T, sum(stacked)) into q (B, H, T, D), k and v (B, G, T, D); applies the norms, if any.

        Of a layer that takes keys and values of another one, k and v have no heads.

        Args:
            cos, sin: rotation of queries and keys that comes before their norm, if the model has it so.
        """
        q, k, v = qkv.split(self.stacked, dim=-1)
        if self.stacked[1] and not self.stacked[2]:
            v = k
        if self.config.qk_norm == "full":
            q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (p.unflatten(-1, (-1, self.config.head_size)).transpose(1, 2) for p in (q, k, v))
        if self.config.rotates_first and cos is not None and sin is not None:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if self.config.qk_norm != "full":
            q, k = self.norm_q(q), self.norm_k(k)
        return q, k, self.norm_v(v)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, config: Config, sinks: Tensor | None = None) -> Tensor:
    """Returns the attention output (B, H, T, D) of q (B, H, T, D), k and v (B, G, S, D).

    Args:
        mask: True where a query sees a key, (T, S) or (B, 1, T, S) bool; None means plain causal attention.
        sinks: logits beside the scores, (H,).
    """
    scale = score_scale(config)
    grouped = config.n_query_groups != config.n_head
    if not config.attn_logit_softcapping and sinks is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(config.n_head // config.n_query_groups, dim=1) for x in (k, v))
    dtype, (q, k, v) = q.dtype, upcast(q, k, v)
    scores = softcap(q @ k.mT * scale, config.attn_logit_softcapping)  # (B, H, T, S)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf)
    p = scores.softmax(-1, dtype=torch.float32) if sinks is None else softmax_with_sinks(scores, sinks[:, None, None])
    return (p.to(v.dtype) @ v).to(dtype)


def score_scale(config: Config) -> float:
    """Returns the factor that attention scores are multiplied by before the softmax."""
    return (config.query_pre_attn_scalar or config.head_size) ** -0.5


def softcap(x: Tensor, cap: float) -> Tensor:
    """Limits x smoothly to -cap .. cap, as cap * tanh(x / cap); a cap of 0 returns x itself."""
    return torch.tanh(x / cap) * cap if cap else x
