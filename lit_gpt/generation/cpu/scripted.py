"""A block for decoding on a CPU, compiled by TorchScript: one call from Python a layer instead of about forty.

An operation of a step of few tokens takes some microseconds, as long as Python needs to call it. Everything is computed
in fp32, whatever the dtype of the weights.

Letters: N tokens of all rows, C n_embd, H query heads, G key/value heads, R = H / G, D head_size, n rotated channels of
a head, T tokens of a row, S positions that they see.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.generation.cpu.cascade import cascade_attention
from lit_gpt.generation.cpu.compiling import compiled
from lit_gpt.generation.cpu.products import known, product, splits_digits
from lit_gpt.generation.cpu.stretches import stretch_end, stretch_of
from lit_gpt.layers.mlp import GatedMLP, PlainMLP
from lit_gpt.layers.norms import LayerNorm, PerHeadNorm, RMSNorm
from lit_gpt.layers.self_attention import CausalSelfAttention, score_scale
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import Block

_NONE, _RMS, _LAYER = 0, 1, 2
"""Kinds of norms; TorchScript knows no names of a module but its functions."""


class _Block(nn.Module):
    """A whole block, see `lit_gpt.model.Block`.

    It has no children but its matmuls, since TorchScript takes milliseconds for each.

    Args:
        window: number of positions that a token sees, its own included; 0 means all.
    """

    def __init__(self, block: Block, window: int) -> None:
        super().__init__()
        attn, mlp, c = block.attn, block.mlp, block.attn.config
        assert isinstance(mlp, GatedMLP | PlainMLP)
        self.parallel, self.shared, self.residual = (
            block.parallel_residual, block.shared_attention_norm, block.residual_factor
        )  # fmt: skip
        self.norm_1, self.norm_2 = _norm(block.norm_1), _norm(block.norm_2)
        self.post_attention_norm, self.post_mlp_norm = _norm(block.post_attention_norm), _norm(block.post_mlp_norm)
        self.norm_q, self.norm_k = _norm(attn.norm_q), _norm(attn.norm_k)
        self.norms_heads = c.qk_norm != "full"
        self.H, self.G, self.D, self.window = c.n_head, c.n_query_groups, c.head_size, window
        self.scale, self.cap = score_scale(c), c.attn_logit_softcapping
        self.gated, self.activation = isinstance(mlp, GatedMLP), c.activation
        self.qkv, self.proj = product(attn.qkv), product(attn.proj)
        ups = [mlp.fc_1, mlp.fc_2] if isinstance(mlp, GatedMLP) else [mlp.fc]
        # two products rather than one whose result is put together; int8 splits activations into digits once for both
        self.ups = nn.ModuleList([product(*ups)] if splits_digits(*ups) else [product(up) for up in ups])
        self.down = product(mlp.proj)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        rows: list[list[int]],
        parts: list[list[int]],
        masks: list[Tensor | None],
        wanted: Tensor | None,
    ) -> Tensor:
        """Returns the output of the block, (N, C), or that of the tokens that are wanted.

        Args:
            x: (N, C).
            cos, sin: (N, 1, n); the first half of sin has its sign changed.
            keys, values: the layer's pool, (positions, G, D) each.
            places: positions of the pool to which the tokens' keys and values go, (N,).
            rows: for each row, [T, the position of its first token, where its extent begins in the pool].
            parts: neighbours among the rows, in order: [index of the first one, of that after the last, where what they
                share begins in the pool, its number of tokens or 0, whether they feed one token each].
            masks: for each row, what is added to its scores, (T, S), or None; see `Batch.masks`.
            wanted: indices of tokens; None are all.
        """
        normed = _normed(x, self.norm_1)
        y = self.attention(normed, cos, sin, keys, values, places, rows, parts, masks)
        if wanted is not None:
            x, normed, y = x[wanted], normed[wanted], y[wanted]
        h = torch.add(x, _normed(self.proj(y), self.post_attention_norm), alpha=self.residual)
        if not self.shared:
            normed = _normed(x if self.parallel else h, self.norm_2)
        return torch.add(h, _normed(self.mlp(normed), self.post_mlp_norm), alpha=self.residual)

    def mlp(self, x: Tensor) -> Tensor:
        """Returns the output of the MLP, (N, C)."""
        ups: list[Tensor] = []
        for product_of in self.ups:
            ups.append(product_of(x))
        if not self.gated:
            return self.down(_activated(ups[0], self.activation))
        gate, up = ups[0], ups[-1]
        if len(ups) == 1:
            gate, up = gate.chunk(2, -1)
        return self.down(_activated(gate, self.activation).mul_(up))

    def attention(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        rows: list[list[int]],
        parts: list[list[int]],
        masks: list[Tensor | None],
    ) -> Tensor:
        """Returns the output of attention before its projection, (N, H * D); arguments as in `forward`."""
        H, G, D = self.H, self.G, self.D
        qk, v = self.qkv(x).split([(H + G) * D, G * D], -1)
        if not self.norms_heads:
            q, k = qk.split([H * D, G * D], -1)
            qk = torch.cat([_normed(q, self.norm_q), _normed(k, self.norm_k)], -1)
        qk = qk.view(-1, H + G, D)
        if self.norms_heads and self.norm_q[0] != 0:
            qk = torch.cat([_normed(qk[:, :H], self.norm_q), _normed(qk[:, H:], self.norm_k)], 1)
        qk = _rotated(qk, cos, sin)
        q, k = qk[:, :H], qk[:, H:]
        keys.index_copy_(0, places, k)
        values.index_copy_(0, places, v.view(-1, G, D))
        outputs: list[Tensor] = []
        at = 0
        for part in parts:
            first, stop, n = part[0], part[1], part[3]
            if part[4] == 1:
                mine = q[at : at + stop - first].view(-1, G, H // G, D)
                y = self.singles(mine, keys, values, rows[first:stop], part[2], n)
                outputs.append(y.reshape(stop - first, -1))
                at += stop - first
                continue
            for i in range(first, stop):
                row, mask = rows[i], masks[i]
                T, end = row[0], row[2] + row[1] + row[0]
                begin = row[2] if mask is None else end - mask.size(1)
                outputs.append(self.attended(q[at : at + T], keys[begin:end], values[begin:end], mask))
                at += T
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 0)

    def singles(self, q: Tensor, keys: Tensor, values: Tensor, rows: list[list[int]], shared: int, n: int) -> Tensor:
        """Returns attention (rows, G, R, D) of rows that feed one token, of which `n` keys are shared, if any.

        The heads of a group see the same keys: they are queries of one head.
        """
        window = self.window
        ends = [row[2] + row[1] + 1 for row in rows]
        if n > 0 and window == 0 and self.cap == 0:
            starts = [row[2] + n for row in rows]
            return cascade_attention(q, keys, values, starts, ends=ends, shared=shared, n=n, scale=self.scale)
        starts = [row[2] + (max(0, row[1] + 1 - window) if window > 0 else 0) for row in rows]
        outputs: list[Tensor] = []
        i = 0
        while i < len(rows):
            j = stretch_end(starts, ends, i)
            k, v = stretch_of(keys, starts, ends, first=i, stop=j), stretch_of(values, starts, ends, first=i, stop=j)
            outputs.append(self.weighted(q[i:j], k, v, None, False))
            i = j
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 0)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the output of attention of one row, (T, H * D), for rotated q (T, H, D), k and v (S, G, D)."""
        T, G, R = q.size(0), self.G, self.H // self.G
        if T == 1:
            k, v = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)  # (1, G, S, D)
            return self.weighted(q.view(1, G, R, self.D), k, v, mask, False).reshape(1, -1)
        q = q.view(T, G, R, self.D).permute(1, 2, 0, 3)  # (G, R, T, D)
        k = k.transpose(0, 1).unsqueeze(1).expand(-1, R, -1, -1)  # (G, R, S, D)
        v = v.transpose(0, 1).unsqueeze(1).expand(-1, R, -1, -1)
        return self.weighted(q, k, v, mask, mask is None).permute(2, 0, 1, 3).reshape(T, -1)

    def weighted(self, q: Tensor, k: Tensor, v: Tensor, unseen: Tensor | None, causal: bool) -> Tensor:
        """Returns the means of v (..., S, D), weighted by the softmax of scores, for q (..., T, D)."""
        if self.cap == 0:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=unseen, is_causal=causal, scale=self.scale)
        scores = torch.tanh(q @ k.mT * (self.scale / self.cap)) * self.cap
        return (scores if unseen is None else scores + unseen).softmax(-1) @ v


def _norm(norm: nn.Module) -> tuple[int, float, Tensor, Tensor]:
    """Returns kind, eps, weight and bias of a norm, in fp32."""
    none = torch.empty(0, dtype=torch.float32)
    if isinstance(norm, RMSNorm):
        weight = norm.weight.detach().float() + float(norm.unit_offset)
        return _RMS, norm.eps, torch.cat([weight, torch.zeros_like(weight)]), none
    if isinstance(norm, LayerNorm):
        return _LAYER, norm.eps, norm.scale.detach().float(), norm.bias.detach().float()
    if isinstance(norm, PerHeadNorm):
        return _LAYER, norm.eps, norm.weight.detach().float(), torch.zeros((), dtype=torch.float32)
    return _NONE, 0.0, none, none


def _normed(x: Tensor, norm: tuple[int, float, Tensor, Tensor]) -> Tensor:
    """Returns x normalized over its last dimension."""
    kind, eps, weight, bias = norm
    if kind == 0:
        return x
    if kind == 1:
        n = x.size(-1)
        if x.size(0) < 8:  # few rows; the mean of x and -x is 0: one kernel that is there instead of six operations
            return F.layer_norm(torch.cat([x, -x], -1), weight.shape, weight, None, eps)[..., :n]
        square = torch.linalg.vector_norm(x, 2, [-1], True).square_()
        return (x * square.div_(n).add_(eps).rsqrt_()).mul_(weight[:n])
    if bias.dim() == 1:
        return F.layer_norm(x, [x.size(-1)], weight, bias, eps)
    return F.layer_norm(x, [x.size(-1)], None, None, eps) * weight


def _activated(x: Tensor, activation: str) -> Tensor:
    """Returns the activation of this name (`lit_gpt.layers.mlp.ACTIVATIONS`) of x, which may be overwritten."""
    if activation == "silu":
        return F.silu(x, inplace=True)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (N, heads, D) with the first n channels of each head rotated; see `_Block.forward`."""
    n = cos.size(-1)
    head = x[..., :n]
    swapped = torch.cat([x[..., n // 2 : n], x[..., : n // 2]], -1)
    y = torch.addcmul(head * cos, swapped, sin)
    return y if n == x.size(-1) else torch.cat([y, x[..., n:]], -1)


def scriptable(block: Block) -> bool:
    """Returns whether `scripted_block` knows everything in a block: it has no adapters but LoRA's, no experts."""
    mlp, attn = block.mlp, block.attn
    if type(attn) is not CausalSelfAttention or not isinstance(mlp, GatedMLP | PlainMLP):
        return False
    if not attn.config.is_plain:
        return False
    ups = [mlp.fc_1, mlp.fc_2] if isinstance(mlp, GatedMLP) else [mlp.fc]
    layers = (attn.qkv, attn.proj, *ups, mlp.proj)
    return all(known(layer.linear if isinstance(layer, LoRALinear) else layer) for layer in layers)


def scripted_block(block: Block, window: int) -> nn.Module:
    """Returns a block that `scriptable` holds for, compiled; arguments as those of `_Block`."""
    return compiled(block, lambda: _Block(block, window).eval())
