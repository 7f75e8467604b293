"""The decoder: how embeddings, blocks and the output head are put together, and the KV cache of decoding.

The parts of a block lie in `lit_gpt.layers`: linear layers and embeddings, attention and other layers that mix tokens,
MLPs and mixtures of them, norms, and rotary embeddings.

Letters: B batch, T tokens, C n_embd, G key/value heads, D head_size, V padded_vocab_size, S length of the KV cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.layers.attention import Documents, Heads
from lit_gpt.layers.conv import ShortConv
from lit_gpt.layers.delta import GatedDeltaNet
from lit_gpt.layers.dropout import Draws
from lit_gpt.layers.linear import Embedding, Linear
from lit_gpt.layers.mamba import Mamba2
from lit_gpt.layers.mlp import GatedMLP, PlainMLP
from lit_gpt.layers.moe import MoE
from lit_gpt.layers.moe_and_mlp import MoEAndMLP
from lit_gpt.layers.neftune import noisy
from lit_gpt.layers.norms import make_norm
from lit_gpt.layers.per_layer import Carried, PerLayerInput, PerLayerInputs
from lit_gpt.layers.rope import Rope
from lit_gpt.layers.self_attention import CausalSelfAttention, softcap


class GPT(nn.Module):
    """A decoder-only transformer of the shape that `config` gives.

    The names in its state dict are those of a checkpoint: `transformer.wte`, `transformer.h.{i}.*`, `transformer.ln_f`,
    and `lm_head`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias)
        self.transformer = _Transformer(
            {
                "wte": Embedding(config.padded_vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config, i) for i in range(config.n_layer)),
                "ln_f": make_norm(config),
                **({"per_layer": PerLayerInputs(config)} if config.per_layer_input_size else {}),
            }
        )
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        self.rope = Rope(config)
        self.n_recomputed = 0
        """Activation checkpointing: the first `n_recomputed` blocks keep only their input, and run their forward pass
        again in the backward pass."""
        self.neftune_alpha = 0.0
        """Strength of the noise on the embeddings of packed documents while training (NEFTune); 0 adds none."""
        self.draws = Draws()
        """What dropout and noise draw from while training."""
        self.noise = self.draws.add_layer()
        for block in self.transformer.h:
            if isinstance(block.mlp, MoE):
                block.mlp.draws = self.draws

    def forward(self, idx: Tensor, input_pos: Tensor | None = None, cache: "KVCache | None" = None) -> Tensor:
        """Returns the next-token logits, (B, T, V).

        Args:
            idx: token ids, (B, T).
            input_pos: positions of `idx` in their sequences, (T,), or (B, T) if rows differ; None means 0 .. T-1.
            cache: keys and values of the earlier positions; those of `idx` are written into it.

        Raises:
            UserError: `idx` is longer than the model's block_size.
        """
        return self.logits(self.hidden(idx, input_pos, cache))

    def hidden(
        self,
        idx: Tensor,
        input_pos: Tensor | None = None,
        cache: "KVCache | None" = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Returns the hidden states before the output projection, (B, T, C).

        A caller that needs the logits of few positions passes only those to `logits`.

        Args:
            documents: the documents packed in the single row of `idx`, (1, T); no token sees another document.
        """
        self.draws.keys = None
        if documents is not None:
            return self.packed_hidden(idx, documents)
        T = idx.size(1)
        if self.config.block_size < T:
            raise UserError(f"a sequence of {T} tokens is longer than the model's {self.config.block_size}")
        positions = torch.arange(T, device=idx.device) if input_pos is None else input_pos
        for_heads = positions if positions.dim() == 1 else positions.unsqueeze(1)  # (B, 1, T), to broadcast over heads
        cos_sin = self.rope.of_layers(for_heads, T if cache is None else cache.length)  # (..., T, rope_n_elem)
        keys = positions if cache is None else cache.positions
        full, sliding = (visible(positions, keys, window) for window in (0, self.config.sliding_window))

        x = self.embed(idx)  # (B, T, C)
        carried = self.carried(idx, x)
        for i, block in enumerate(self.transformer.h):
            mask = sliding if self.config.is_sliding(i) else full
            x = block(x, *cos_sin[i], mask, None if cache is None else cache.layers[i], input_pos, None, carried)
        return self.transformer.ln_f(x)

    def packed_hidden(self, idx: Tensor, documents: Documents) -> Tensor:
        """Returns the hidden states of packed documents, (1, T, C), before the output projection."""
        longest = max(documents.whole)
        if self.config.block_size < longest:
            raise UserError(f"a sequence of {longest} tokens is longer than the model's {self.config.block_size}")
        cos_sin = self.rope.packed(documents.positions, documents.lengths, documents.ends)  # (T, rope_n_elem)
        x = self.embed(idx)
        if self.training and self.neftune_alpha:
            x = noisy(x, documents, self.neftune_alpha, seed=self.draws.seed_of(self.noise, x.device))
        carried = self.carried(idx, x)
        for i, block in enumerate(self.transformer.h):
            if i < self.n_recomputed and torch.is_grad_enabled():
                x = checkpoint(self.packed_block, block, x, *cos_sin[i], documents, carried, use_reentrant=False)
            else:
                x = self.packed_block(block, x, *cos_sin[i], documents, carried)
        return self.transformer.ln_f(x)

    def packed_block(
        self, block: "Block", x: Tensor, cos: Tensor, sin: Tensor, documents: Documents, carried: Carried | None
    ) -> Tensor:
        """Returns the output of a block for packed documents, (1, T, C), whose dropout is drawn by their keys."""
        self.draws.keys = documents.keys
        return block(x, cos, sin, documents=documents, carried=carried)

    @property
    def attention_heads(self) -> Heads | None:
        """The heads of the first layer with attention; None if there is none."""
        layers = (block.attn for block in self.transformer.h)
        return next((attn.heads for attn in layers if isinstance(attn, CausalSelfAttention)), None)

    def embed(self, idx: Tensor) -> Tensor:
        """Returns the input of the first block, (B, T, C), for token ids (B, T)."""
        x = self.transformer.wte(idx)
        factor = embedding_factor(self.config)
        return x if factor == 1 else x * x.new_full((), factor)  # the factor is rounded to x's dtype, as in Gemma

    def carried(self, idx: Tensor, x: Tensor) -> Carried | None:
        """Returns what a pass over token ids (B, T) takes along from layer to layer; None for most models.

        Args:
            x: the input of the first block, (B, T, C).
        """
        if "per_layer" in self.transformer:
            return Carried(self.transformer.per_layer(idx, x))
        return Carried() if self.config.kv_shared_layers else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits, (..., V), of hidden states (..., C)."""
        return finished_logits(self.lm_head(hidden), self.config)


class _Transformer(nn.ModuleDict):
    """Names the types of the modules between the token ids and the output projection for type checkers."""

    wte: Embedding
    h: Sequence["Block"]
    ln_f: nn.Module
    per_layer: PerLayerInputs


class Block(nn.Module):
    """A transformer block: attention and MLP in sequence or in parallel, or one of them, and the other is None.

    What mixes tokens by other means stands in the place of attention. A norm that a model lacks is `nn.Identity`.
    """

    attn: Any
    """`CausalSelfAttention`, another `Mixing` layer, or None."""
    mlp: Any
    """`PlainMLP`, `GatedMLP`, `MoE`, or None."""

    layer_scalar: Tensor | None

    def __init__(self, config: Config, layer: int = 0) -> None:
        super().__init__()
        self.layer, self.parallel_residual = layer, config.parallel_residual
        self.shared_attention_norm = config.shared_attention_norm
        self.residual_factor = config.residual_factor
        mixer, (kind, size) = config.mixer(layer), config.mlp_of(layer)
        self.attn = self.mlp = None
        if mixer != "none":
            self.norm_1 = make_norm(config, config.pre_norm)
            self.attn = _MIXERS[mixer](config, layer)
            self.post_attention_norm = make_norm(config, config.post_norm)
        if kind != "none":
            both = kind == "moe" and config.dense_beside_experts  # with norms of their own
            self.norm_2 = make_norm(config, config.pre_norm and not (config.shared_attention_norm or both))
            mixture = MoEAndMLP if both else MoE
            self.mlp = mixture(config) if kind == "moe" else (PlainMLP if kind == "plain" else GatedMLP)(config, size)
            self.post_mlp_norm = make_norm(config, config.post_norm)
        self.per_layer = PerLayerInput(config) if config.per_layer_input_size else None
        self.register_buffer("layer_scalar", torch.ones(1) if config.layer_scale else None)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: "_LayerCache | None" = None,
        input_pos: Tensor | None = None,
        documents: Documents | None = None,
        carried: Carried | None = None,
    ) -> Tensor:
        h = normed = x
        if self.attn is not None:
            normed = self.norm_1(x)
            y = self.post_attention_norm(self.attn(normed, cos, sin, mask, cache, input_pos, documents, carried))
            h = x + (y if self.residual_factor == 1 else y * self.residual_factor)
        if self.mlp is None:
            return h
        if not self.shared_attention_norm:
            normed = self.norm_2(x if self.parallel_residual else h)
        y = self.post_mlp_norm(self.mlp(normed))
        h = h + (y if self.residual_factor == 1 else y * self.residual_factor)
        if self.per_layer is not None and carried is not None and carried.inputs is not None:
            h = self.per_layer(h, carried.inputs[..., self.layer, :])
        return h if self.layer_scalar is None else h * self.layer_scalar.to(h.dtype)


_MIXERS = {"attention": CausalSelfAttention, "conv": ShortConv, "delta": GatedDeltaNet, "mamba2": Mamba2}


def embedding_factor(config: Config) -> float:
    """Returns the factor that embeddings are multiplied by."""
    return config.embedding_factor * (config.n_embd**0.5 if config.scale_embeddings else 1.0)


def finished_logits(x: Tensor, config: Config) -> Tensor:
    """Returns the logits for the outputs (..., V) of the output projection: divided and soft-capped."""
    return softcap(x if config.logit_divisor == 1 else x / config.logit_divisor, config.final_logit_softcapping)


def visible(queries: Tensor, keys: Tensor, window: int) -> Tensor | None:
    """Returns the attention mask, True where a query sees a key, (T, S) or (B, 1, T, S) bool.

    Returns None for plain causal attention, which needs no mask.

    Args:
        queries: positions, (T,) or (B, T).
        keys: positions, (S,); the same tensor as `queries` if it is 0 .. T-1 for both.
        window: largest number of keys that a query sees, its own included; 0 means no limit.
    """
    if queries is keys and (not window or queries.size(0) <= window):
        return None
    distance = queries.unsqueeze(-1) - keys  # (..., T, S)
    seen = distance >= 0 if not window else (distance >= 0) & (distance < window)
    return seen.unsqueeze(1) if seen.dim() == 3 else seen


class KVCache:
    """Keys and values of the tokens seen so far, for every layer of `model` and up to `length` positions per row.

    One cache serves one generation: it is passed to each call of the model. Rows may be at different positions: a
    query at position p sees positions 0 .. p of its row only, and thus never what padding left at later positions.
    """

    def __init__(self, model: GPT, batch_size: int, length: int) -> None:
        c = model.config
        if length > c.block_size:
            raise UserError(f"{length} tokens are more than the model's {c.block_size}")
        like = model.transformer.wte.weight
        self.length = length
        sizes = [c.cached(i) for i in range(c.n_layer)]
        self.layers = [
            _LayerCache(*(like.new_zeros(batch_size, heads, length, n) for heads, n in of_layer)) for of_layer in sizes
        ]
        self.positions = torch.arange(length, device=like.device)


class _LayerCache:
    """Keys and values of one layer, (B, G, S, D) each."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self.states: dict[str, Any] = {}
        """What a layer that is not attention keeps besides."""

    def update(self, k: Tensor, v: Tensor, input_pos: Tensor | None) -> tuple[Tensor, Tensor]:
        """Writes k and v, (B, G, T, D), at positions `input_pos`, and returns all cached keys and values."""
        if input_pos is None:
            input_pos = torch.arange(k.size(2), device=k.device)
        for cached, new in ((self.k, k), (self.v, v)):
            new = new.to(cached.dtype)
            if input_pos.dim() == 1:
                cached.index_copy_(2, input_pos, new)
            else:
                cached.scatter_(2, input_pos[:, None, :, None].expand_as(new), new)
        return self.k.to(k.dtype), self.v.to(v.dtype)
