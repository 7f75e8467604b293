"""What the backward pass keeps of a block: the inputs of cheap functions, never their results.

A norm's or an activation's result is as large as its input and costs one pass over memory to make again. So it carries
a recipe, and whoever would save it for the backward pass saves what the recipe needs instead; that is there anyway.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.layers.compiled import compiled_on_gpu


def recomputable(y: Tensor, fn: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """`y`, which is fn(*sources), marked so that `save` keeps the sources in its place."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        y.recompute = (fn, sources)  # pyright: ignore[reportAttributeAccessIssue] a tensor takes attributes
    return y


def save(ctx: Any, x: Tensor, *others: Tensor) -> None:
    """`ctx.save_for_backward(x, *others)`, with the sources of x where it has a recipe."""
    ctx.recompute, sources = getattr(x, "recompute", (None, (x,)))
    ctx.n_sources = len(sources)
    ctx.save_for_backward(*sources, *others)


def saved(ctx: Any) -> tuple[Tensor, ...]:
    """(x, *others) that `save` was given; x is made again if it had a recipe."""
    tensors = ctx.saved_tensors  # read once: a checkpoint hands them out once
    sources, others = tensors[: ctx.n_sources], tensors[ctx.n_sources :]
    return (sources[0] if ctx.recompute is None else ctx.recompute(*sources), *others)


@compiled_on_gpu
def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """x / rms(x) * weight (or 1 + weight) over the last dimension, in fp32 but for the last product."""
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    if unit_offset:
        return (h * (1 + weight.float())).to(x.dtype)
    return (weight * h.to(x.dtype)).to(x.dtype)  # a weight that trains is fp32


@compiled_on_gpu
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """The gradient of `rms_norm` with respect to x: it has no part along x but for eps."""
    h = x.float()
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    h = h * scale
    g = dy.float() * (1 + weight.float() if unit_offset else weight.float())
    return (scale * (g - h * (g * h).mean(-1, keepdim=True))).to(x.dtype)


class RMSNormFunction(Function):
    """`rms_norm` that keeps x and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
        ctx.settings = (eps, unit_offset)
        ctx.save_for_backward(x, weight)
        return rms_norm(x, weight, eps, unit_offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _rms_norm_backward(dy, x, weight, *ctx.settings)
        if ctx.needs_input_grad[1]:
            h = x.float()
            h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + ctx.settings[0])
            dw = (dy.float() * h).flatten(0, -2).sum(0).to(weight.dtype)
        return dx, dw, None, None


@compiled_on_gpu
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate) * up


@compiled_on_gpu
def silu_mul_backward(dy: Tensor, gate: Tensor, up: Tensor) -> None:
    """Turns gate and up into their gradients."""
    d_up = dy * torch.nn.functional.silu(gate)
    gate.copy_(torch.ops.aten.silu_backward(dy * up, gate))
    up.copy_(d_up)


@compiled_on_gpu
def gelu_mul(gate: Tensor, up: Tensor, approximate: str) -> Tensor:
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


@compiled_on_gpu
def gelu_mul_backward(dy: Tensor, gate: Tensor, up: Tensor, approximate: str) -> None:
    """Turns gate and up into their gradients."""
    d_up = dy * torch.nn.functional.gelu(gate, approximate=approximate)
    gate.copy_(torch.ops.aten.gelu_backward(dy * up, gate, approximate=approximate))
    up.copy_(d_up)


class GatedFunction(Function):
    """activation(gate) * up that keeps the two and nothing else; their gradients take their place in memory.

    Args:
        forward_, backward_: the product and its gradients, as above.
        settings: their further arguments.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, forward_: Callable, backward_: Callable, *settings: Any) -> Tensor:
        ctx.backward_, ctx.settings, ctx.used = backward_, settings, False
        ctx.save_for_backward(gate, up)
        return forward_(gate, up, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError("a second backward pass would read gradients where the first one read activations")
        ctx.used = True
        gate, up = ctx.saved_tensors
        ctx.backward_(dy, gate, up, *ctx.settings)
        return gate, up, None, None, *(None for _ in ctx.settings)
