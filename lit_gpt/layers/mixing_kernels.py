"""Kernels of other packages for layers that are not attention: on a GPU, in 16 bits, where they are installed.

| of a layer        | in the first of these that is there        | and in plain torch |
| ----------------- | ------------------------------------------ | ------------------ |
| short convolution | causal-conv1d, fla-core                    | texts that go on from others or from a cache |
| Mamba-2           | mamba-ssm if no state goes in or out, else fla-core | single tokens |
| gated delta rule  | fla-core                                   | single tokens |

mamba-ssm reads B and C of a group as they are, where fla-core's `simple_gla` takes a copy in each head; only the latter
hands a state from text to text, as shared prefixes and a cache need it, and passes gradients through it. fla-core is
Triton alone; the other two are compiled when they are installed. All multiply in 16 bits and keep the state in fp32, so
models in fp32 keep to plain torch. So do single tokens, for which a kernel that takes chunks does too much.

https://github.com/fla-org/flash-linear-attention, https://github.com/Dao-AILab/causal-conv1d,
https://github.com/state-spaces/mamba.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.layers.past import Rule

_settings = {"on": True}  # of the whole process


class _Kernel(NamedTuple):
    """Where a function is: its package, the oldest version that takes the arguments used here, modules to look in."""

    package: str
    oldest: tuple[int, int]
    modules: tuple[str, ...]
    name: str


_KERNELS = {
    "causal_conv1d": _Kernel("causal-conv1d", (1, 5), ("causal_conv1d",), "causal_conv1d_fn"),
    "convolution": _Kernel(
        "fla-core", (0, 4), ("fla.modules.causal_conv1d", "fla.modules.convolution"), "causal_conv1d"
    ),
    # before 2.3 it cannot be imported beside transformers 5
    "ssd": _Kernel("mamba-ssm", (2, 3), ("mamba_ssm.ops.triton.ssd_combined",), "mamba_chunk_scan_combined"),
    "simple_gla": _Kernel("fla-core", (0, 4), ("fla.ops.simple_gla",), "chunk_simple_gla"),
    "gated_delta_rule": _Kernel("fla-core", (0, 4), ("fla.ops.gated_delta_rule",), "chunk_gated_delta_rule"),
}
_CHUNK = 256
"""Tokens that mamba-ssm takes at once, as Granite 4 names them; the result does not depend on it."""


@contextmanager
def without_kernels() -> Iterator[None]:
    """Keeps layers to plain torch inside the context."""
    before = _settings["on"]
    _settings["on"] = False
    try:
        yield
    finally:
        _settings["on"] = before


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Sequence[int], silu: bool) -> Tensor | None:
    """Returns the causal convolution (B, T, n) of texts that lie end to end in x (B, T, n); None without a kernel.

    Args:
        weight: (n, L), the last of the L for the token itself.
        bias: (n,) or None.
        lengths: of the texts, in tokens; their sum is B T.
        silu: whether silu follows.
    """
    if not _serves(x):
        return None
    rows, activation = x.reshape(1, -1, x.size(-1)), "silu" if silu else None
    if x.size(-1) % 8 == 0 and 2 <= weight.size(1) <= 4 and (run := _found("causal_conv1d")):
        if rows.data_ptr() % 16 or any(stride % 8 for stride in rows.stride()[:2]):  # it loads 8 channels at once
            rows = rows.clone(memory_format=torch.contiguous_format)
        y = run(rows.mT, weight, bias, seq_idx=_numbers(tuple(lengths), x.device), activation=activation).mT
    elif run := _found("convolution"):
        y, _ = run(rows, weight, bias, activation=activation, cu_seqlens=_boundaries(tuple(lengths), x.device))
    else:
        return None
    return y.view(x.shape)


def scan_of_whole_texts(x: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, min_step: float) -> Rule | None:
    """Returns a rule for Mamba-2 on features x whose texts begin here and leave no state; None without a kernel.

    The tensors of the rule are the input (N, V, P), B and C (N, G, S) and the time steps before bias and softplus,
    (N, V). It keeps no more for its backward pass than what goes in and out, and returns no states: a tensor of none.

    Args:
        A: rates of the heads, negative, (V,).
        D: what of the input is added to the output, (V,).
        dt_bias: (V,).
        min_step: the shortest time step.
    """
    if not _serves(x) or (run := _found("ssd")) is None:
        return None

    def in_package(tensors: Sequence[Tensor], lengths: Sequence[int], initial: Tensor | None) -> tuple[Tensor, Tensor]:
        assert initial is None
        x, B, C, dt = (t[None] for t in tensors)
        y = run(
            x,
            dt,
            A,
            B,
            C=C,
            D=D,
            chunk_size=_CHUNK,
            dt_bias=dt_bias,
            dt_softplus=True,
            dt_limit=(min_step, float("inf")),
            seq_idx=_numbers(tuple(lengths), x.device),
        )
        return y[0], y.new_empty(0)

    return in_package


def in_kernels(rule: Rule, operator: str, x: Tensor) -> Rule:
    """Returns what computes a rule for features x: an operator of fla-core where that serves, else the rule itself.

    Args:
        rule: its tensors are those of the operator in their order: queries, keys and values, (N, V, ...), the logarithm
            of the decay, (N, V), and whatever else it takes; queries are scaled.
        operator: `gated_delta_rule` or `simple_gla`, as the package names them.
        x: features of a layer's tokens.
    """
    if not _serves(x) or (run := _found(operator)) is None:
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
    return _settings["on"] and x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


@cache
def _found(kernel: str) -> Callable[..., Any] | None:
    """Returns the function of a kernel; None where its package is missing, too old, or cannot be imported."""
    of = _KERNELS[kernel]
    try:
        there = version(of.package)
        if tuple(map(int, there.split(".")[:2])) < of.oldest:
            return None
    except (PackageNotFoundError, ValueError):
        return None
    why = ""
    for module in of.modules:
        try:
            return getattr(import_module(module), of.name)
        except Exception as e:  # compiled for another torch, or broken by another triton: anything at all
            why = why or f"{type(e).__name__}: {e}".splitlines()[0]
    warnings.warn(f"{of.package} {there} is not used, as it cannot be imported here ({why})", stacklevel=2)
    return None


@lru_cache(maxsize=64)
def _boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns where texts that lie end to end begin and end, (n + 1,); the same tensor for the layers of a pass."""
    with torch.inference_mode(False):  # a training pass may be the next one, and the package saves it for its backward
        return torch.tensor([0, *accumulate(lengths)], device=device)


@lru_cache(maxsize=64)
def _numbers(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns the number of each token's text, (1, N), of texts that lie end to end; kept as `_boundaries` is."""
    with torch.inference_mode(False):
        n = torch.arange(len(lengths), dtype=torch.int32)
        return n.repeat_interleave(torch.tensor(lengths))[None].to(device)
