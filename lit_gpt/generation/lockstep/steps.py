"""Models for decoding one token at a time, which share all weights with the original model and do not change it.

There are two ways to need few kernel launches: our Triton kernels, and `torch.compile`. Both replace attention; in the
rest of the model they change only how linear layers are called.

Letters: B rows, H query heads, G key/value heads, D head_size, C n_embd, S positions that are read.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.errors import UserError
from lit_gpt.generation.lockstep.cache import LayerSlice
from lit_gpt.layers.linear import Linear, LinearLayer
from lit_gpt.layers.mlp import GatedMLP
from lit_gpt.layers.quantize.eight_bit import EightBitLinear
from lit_gpt.layers.rope import apply_rope
from lit_gpt.layers.self_attention import CausalSelfAttention, score_scale, softcap
from lit_gpt.model import GPT, Block, visible

_MOST_VARIANTS = 64
"""Limit on the variants of a compiled block in a process: one for each model, dtype and number of rows."""


def _with_children(module: nn.Module, **children: nn.Module) -> Any:
    """Returns a module that shares everything with `module` but its children of these names."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


def _with_blocks(model: GPT, make: Callable[[Block, int], nn.Module], lm_head: nn.Module) -> GPT:
    """Returns `model` with other blocks and another output projection.

    Args:
        make: returns the module that replaces a block with this window of attention (0: none).
    """
    config = model.config
    windows = [config.sliding_window if config.is_sliding(i) else 0 for i in range(config.n_layer)]
    blocks = nn.ModuleList(make(b, w) for b, w in zip(model.transformer.h, windows, strict=True))
    return _with_children(model, transformer=_with_children(model.transformer, h=blocks), lm_head=lm_head)


def with_kernels(model: GPT, batch_size: int) -> GPT:
    """Returns `model` with Triton kernels for attention and, for a single row, for matmuls.

    The kernels use a `StaticCache`, of which they read the filled positions only. 8-bit weights are multiplied by
    activations that are not quantized, which is more precise than the layer itself.
    """

    def row(module: nn.Module) -> Any:
        return _single_row(module, model.config.activation) if batch_size == 1 else module

    def make(block: Block, window: int) -> nn.Module:
        beside = block.attn.beside(model.transformer.wte.weight.dtype)
        block = row(block)
        return _with_children(block, attn=_KernelAttention(block.attn, window, beside))

    return _with_blocks(model, make, row(model.lm_head))


def _single_row(module: nn.Module, activation: str) -> nn.Module:
    """Returns `module` for inputs of one row, with our kernel in the linear layers whose weight it can read."""
    if isinstance(module, _READABLE):
        return _RowMatmul(module)
    if isinstance(module, GatedMLP) and isinstance(module.fc_1, _READABLE) and type(module.fc_1) is type(module.fc_2):
        return nn.Sequential(_RowMatmul(module.fc_2, module.fc_1, activation), _single_row(module.proj, activation))
    children = {name: _single_row(child, activation) for name, child in module.named_children()}
    changed = {name: child for name, child in children.items() if child is not getattr(module, name)}
    return _with_children(module, **changed) if changed else module


_READABLE = (Linear, EightBitLinear)
"""Layers whose weight is (out_features, in_features), with a `scale` for each row if it is in 8 bits."""


class _RowMatmul(LinearLayer):
    """A linear layer for a single row.

    Args:
        layer: one of _READABLE.
        gate: another of the same class and size; the output is multiplied by activation(gate(x)).
    """

    def __init__(self, layer: LinearLayer, gate: LinearLayer | None = None, activation: str = "") -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.layer, self.gate, self.activation = layer, gate, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_no_grad(x)

    def forward_no_grad(self, x: Tensor) -> Tensor:
        from lit_gpt.generation.kernels.matvec import Weight, matvec  # Triton comes with torch for GPUs only

        layer, *gate = (
            Weight(m.weight, getattr(m, "scale", None), m.bias) for m in (self.layer, self.gate) if m is not None
        )
        return matvec(x, layer, gate[0] if gate else None, self.activation)


class _KernelAttention(nn.Module):
    """An attention layer for one token per row, in three kernels besides the matmuls."""

    def __init__(self, attn: CausalSelfAttention, window: int, beside: nn.Module | None = None) -> None:
        super().__init__()
        self.attn, self.window, self.beside = attn, window, beside

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: LayerSlice, input_pos: Tensor, *unused: None
    ) -> Tensor:
        """
        Args:
            x: (B, 1, C).
            cos, sin: (B, 1, 1, rope_n_elem).
            mask: not used; the kernels compute which positions are visible.
            input_pos: (B, 1).
        """
        from lit_gpt.generation.kernels.attention import attention  # Triton, as above

        config = self.attn.config
        q, k, v = self.attn.split_heads(self.attn.qkv(x))
        y = attention(
            q,
            k,
            v=v,
            cos=cos,
            sin=sin,
            cached=(cache.k, cache.v),
            position=input_pos,
            base=cache.rows,
            position_stride=len(cache.rows),
            scale=score_scale(config),
            cap=config.attn_logit_softcapping,
            window=self.window,
        )
        if self.beside is not None:
            y = y + self.beside(apply_rope(q, cos, sin)).transpose(1, 2).flatten(2)
        return self.attn.proj(y)


def compiled(model: GPT, backend: str) -> GPT:
    """Returns `model` with compiled blocks, for a cache of `StaticCache.first(...).any_size()`.

    One block is compiled and used for all layers: compiling 32 layers in one piece would take half a minute, and gain
    little where steps are captured as CUDA graphs anyway.

    Args:
        backend: backend of `torch.compile`.

    Raises:
        UserError: at the first step, if this machine cannot compile.
    """
    step = _compiled_step(backend, model.transformer.wte.weight.is_cuda)

    def make(block: Block, window: int) -> nn.Module:
        beside = block.attn.beside(model.transformer.wte.weight.dtype)
        return _Compiled(_with_children(block, attn=_CompiledAttention(block.attn, window, beside)), step)

    return _with_blocks(model, make, _Compiled(model.lm_head, step))


@cache
def _compiled_step(backend: str, cuda: bool) -> Callable[..., Tensor]:
    """Returns `_call` compiled with `backend`, once per process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VARIANTS)
    # with tuning, matmuls of one row become reductions, which reach the memory's bandwidth only if tuned
    options: dict[str, Any] | None = {"coordinate_descent_tuning": True} if cuda and backend == "inductor" else None
    return torch.compile(_call, backend=backend, dynamic=False, options=options)


def _call(module: nn.Module, *args: Any) -> Tensor:
    return module(*args)


class _Compiled(nn.Module):
    """A wrapper that runs a module through code compiled once for all modules of the same structure."""

    def __init__(self, module: nn.Module, step: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, *args: Any) -> Tensor:
        try:
            return self.step(self.module, *args)
        # torch imports its compiler when it is used
        except torch._dynamo.exc.TorchDynamoException as e:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"torch.compile fails here: {str(e).strip().splitlines()[0]}; leave out --compile") from e


class _CompiledAttention(nn.Module):
    """An attention layer for one token per row, written so that it compiles into few kernels."""

    def __init__(self, attn: CausalSelfAttention, window: int, beside: nn.Module | None = None) -> None:
        super().__init__()
        self.attn, self.window, self.beside = attn, window, beside

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: LayerSlice, input_pos: Tensor, *unused: None
    ) -> Tensor:
        """
        Args:
            x: (B, 1, C).
            cos, sin: (B, 1, 1, rope_n_elem).
            mask: not used; it is recomputed from the positions, which costs nothing in a compiled kernel.
            input_pos: (B, 1).
        """
        q, k, v = self.attn.split_heads(self.attn.qkv(x))
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        k, v = cache.update(k, v, input_pos)  # (B, G, S, D)
        seen = visible(input_pos, cache.positions, self.window)  # (B, 1, 1, S)
        assert seen is not None  # the positions of queries are not those of the keys
        y = _attend_one(q, k, v, seen=seen, config=self.attn.config)
        if self.beside is not None:
            y = y + self.beside(q)
        return self.attn.proj(y.transpose(1, 2).flatten(2))


def _attend_one(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, config: Config) -> Tensor:
    """Returns the result of `self_attention.attend` for q (B, H, 1, D), by sums in fp32 instead of matmuls."""
    q = q.unflatten(1, (k.size(1), -1)).float()  # (B, G, H / G, 1, D)
    k, v = k.unsqueeze(2).float(), v.unsqueeze(2)  # (B, G, 1, S, D)
    scores = (q * k).sum(-1) * score_scale(config)  # (B, G, H / G, S)
    scores = softcap(scores, config.attn_logit_softcapping).masked_fill(~seen, -torch.inf)
    y = (scores.softmax(-1).unsqueeze(-1) * v.float()).sum(-2, keepdim=True)  # (B, G, H / G, 1, D)
    return y.to(v.dtype).flatten(1, 2)
