"""The rules of recurrent layers in the kernels of flash-linear-attention, on a GPU where the package fla-core is there.

https://github.com/fla-org/flash-linear-attention. Its kernels multiply in 16 bits and keep the state in fp32. So models
in fp32 keep to plain torch, and so do single tokens, for which a kernel that takes chunks does too much.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lit_gpt.layers.past import Rule

_OLDEST = (0, 4)
"""Version of fla-core from which on the operators have the arguments that are used here."""


def in_kernels(rule: Rule, operator: str, x: Tensor) -> Rule:
    """Returns what computes a rule for features x: an operator of the package where that serves, else the rule itself.

    Args:
        rule: its tensors are those of the operator in their order: queries, keys and values, (N, V, ...), the logarithm
            of the decay, (N, V), and whatever else it takes; queries are scaled.
        operator: `gated_delta_rule` or `simple_gla`, as the package names them.
        x: features of a layer's tokens.
    """
    if not _serves(x) or (run := _operator(operator)) is None:
        return rule

    def in_package(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
        if max(lengths) == 1:
            return rule(tensors, lengths, initial)
        q, k, v, *rest = (t[None] for t in tensors)
        y, states = run(
            *(t.to(x.dtype) for t in (q, k, v)),
            *rest,
            scale=1.0,
            initial_state=initial,
            output_final_state=True,
            cu_seqlens=_boundaries(tuple(lengths), x.device),
        )
        return y[0].float(), states

    return in_package


def _serves(x: Tensor) -> bool:
    """Returns whether the kernels are for features like x."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


@cache
def _operator(name: str) -> Callable[..., tuple[Any, Any]] | None:
    """Returns an operator of the package; None where it is missing or too old."""
    try:
        found = tuple(map(int, version("fla-core").split(".")[:2]))
        module = importlib.import_module(f"fla.ops.{name}") if found >= _OLDEST else None
    except (PackageNotFoundError, ImportError, ValueError):
        return None
    return None if module is None else getattr(module, f"chunk_{name}")


@lru_cache(maxsize=64)
def _boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns where texts that lie end to end begin and end, (n + 1,); the same tensor for the layers of a pass."""
    with torch.inference_mode(False):  # a training pass may be the next one, and the package saves it for its backward
        return torch.tensor([0, *accumulate(lengths)], device=device)
