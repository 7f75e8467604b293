"""A model compiled for steps of one token. It shares every weight with the model it is made of.

One block is compiled and serves all layers: 32 of them in one piece would take half a minute, and gain little where
steps are captured as CUDA graphs anyway.

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
from lit_gpt.generation.cache import LayerSlice
from lit_gpt.model import GPT, CausalSelfAttention, softcap, visible
from lit_gpt.rope import apply_rope

MOST_VARIANTS = 64
"""Of a compiled block in a process: for each model, dtype and number of rows."""


def compiled_blocks(model: GPT, backend: str) -> GPT:
    """`model` for steps of one token, with a cache of `StaticCache.first`; `model` itself stays as it is.

    Args:
        backend: of `torch.compile`.

    Raises:
        UserError: at the first step, if this machine cannot compile.
    """
    config = model.config
    step = compiled_step(backend, model.transformer.wte.weight.is_cuda)
    windows = [config.sliding_window if config.is_sliding(i) else 0 for i in range(config.n_layer)]
    blocks = (
        Compiled(with_children(block, attn=OneTokenAttention(block.attn, window)), step)
        for block, window in zip(model.transformer.h, windows, strict=True)
    )
    transformer = with_children(model.transformer, h=nn.ModuleList(blocks))
    return with_children(model, transformer=transformer, lm_head=Compiled(model.lm_head, step))


def with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A module that shares everything with `module` but has `children` in the place of those of the same names."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin


@cache
def compiled_step(backend: str, cuda: bool) -> Callable[..., Tensor]:
    """`call`, compiled once in a process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)
    # tuning makes products with one row reductions of our own, and those come near the memory's bandwidth only tuned
    options = {"coordinate_descent_tuning": True} if cuda and backend == "inductor" else None
    return torch.compile(call, backend=backend, dynamic=False, options=options)


def call(module: nn.Module, *args: Any) -> Tensor:
    return module(*args)


class Compiled(nn.Module):
    """`module`, by way of what was compiled for all modules that look like it."""

    def __init__(self, module: nn.Module, step: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, *args: Any) -> Tensor:
        try:
            return self.step(self.module, *args)
        except torch._dynamo.exc.TorchDynamoException as e:
            raise UserError(f"torch.compile fails here: {str(e).strip().splitlines()[0]}; leave out --compile") from e


class OneTokenAttention(nn.Module):
    """What the attention it is made of computes for one token a row, written so that it compiles into few kernels."""

    def __init__(self, attn: CausalSelfAttention, window: int) -> None:
        super().__init__()
        self.attn, self.window = attn, window

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: LayerSlice, input_pos: Tensor, *unused: None
    ) -> Tensor:
        """
        Args:
            x: (B, 1, C).
            cos, sin: (B, 1, 1, rope_n_elem).
            mask: is made again here from positions, which costs nothing in a compiled kernel.
            input_pos: (B, 1).
        """
        q, k, v = self.attn.split_heads(self.attn.qkv(x))
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        k, v = cache.update(k, v, input_pos)  # (B, G, S, D)
        seen = visible(input_pos, cache.positions, self.window)  # (B, 1, 1, S)
        y = attend_one(q, k, v, seen, self.attn.config)
        return self.attn.proj(y.transpose(1, 2).flatten(2))


def attend_one(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, config: Config) -> Tensor:
    """`lit_gpt.model.attend` for q (B, H, 1, D), by sums of products in fp32 instead of matrix products."""
    q = q.unflatten(1, (k.size(1), -1)).float()  # (B, G, H / G, 1, D)
    k, v = k.unsqueeze(2).float(), v.unsqueeze(2)  # (B, G, 1, S, D)
    scores = (q * k).sum(-1) * (config.query_pre_attn_scalar or config.head_size) ** -0.5  # (B, G, H / G, S)
    scores = softcap(scores, config.attn_logit_softcapping).masked_fill(~seen, -torch.inf)
    y = (scores.softmax(-1).unsqueeze(-1) * v.float()).sum(-2, keepdim=True)  # (B, G, H / G, 1, D)
    return y.to(v.dtype).flatten(1, 2)
