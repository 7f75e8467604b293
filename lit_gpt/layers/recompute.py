"""Recomputation of norms and activations in the backward pass, so that autograd never keeps their outputs.

The output of a norm or an activation is as large as its input, and costs one pass over memory to compute again. The
output is therefore marked with the function and the inputs that it came from; a layer that needs it in the backward
pass saves these inputs, which are in memory anyway. (Activation checkpointing, which recomputes whole blocks, is in
`lit_gpt.model`.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.layers.compiled import compiled_on_gpu


def recomputable(y: Tensor, fn: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """Marks `y` = fn(*sources) so that `save` saves the sources instead of `y`, and returns it."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        y.recompute = (fn, sources)  # pyright: ignore[reportAttributeAccessIssue] a tensor takes attributes
    return y


def save(ctx: Any, x: Tensor, *others: Tensor) -> None:
    """Saves x and the others for the backward pass; in place of an x that is marked recomputable, saves its sources."""
    ctx.recompute, sources = getattr(x, "recompute", (None, (x,)))
    ctx.n_sources = len(sources)
    ctx.save_for_backward(*sources, *others)


def saved(ctx: Any) -> tuple[Tensor, ...]:
    """Returns (x, *others) as `save` was given them; recomputes x if it was marked recomputable."""
    tensors = ctx.saved_tensors  # read once: under activation checkpointing a second access fails
    sources, others = tensors[: ctx.n_sources], tensors[ctx.n_sources :]
    return (sources[0] if ctx.recompute is None else ctx.recompute(*sources), *others)


@compiled_on_gpu
def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """Returns x / rms(x) * weight (or 1 + weight) over the last dimension, with statistics in fp32."""
    h = x.float()
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    if unit_offset:
        return (h * (1 + weight.float())).to(x.dtype)
    return (weight * h.to(x.dtype)).to(x.dtype)  # a weight that trains is fp32, whatever the dtype of x


@compiled_on_gpu
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """Returns the gradient of `rms_norm` with respect to x; but for eps, it is orthogonal to x."""
    h = x.float()
    scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    h = h * scale
    g = dy.float() * (1 + weight.float() if unit_offset else weight.float())
    return (scale * (g - h * (g * h).mean(-1, keepdim=True))).to(x.dtype)


class RMSNormFunction(Function):
    """The autograd function of `rms_norm`, which saves only x and the weight."""

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
    """Returns silu(gate) * up."""
    return torch.nn.functional.silu(gate) * up


@compiled_on_gpu
def silu_mul_backward(dy: Tensor, gate: Tensor, up: Tensor) -> None:
    """Overwrites gate and up with their gradients."""
    d_up = dy * torch.nn.functional.silu(gate)
    gate.copy_(torch.ops.aten.silu_backward(dy * up, gate))
    up.copy_(d_up)


@compiled_on_gpu
def gelu_mul(gate: Tensor, up: Tensor, approximate: str) -> Tensor:
    """Returns gelu(gate) * up."""
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


@compiled_on_gpu
def gelu_mul_backward(dy: Tensor, gate: Tensor, up: Tensor, approximate: str) -> None:
    """Overwrites gate and up with their gradients."""
    d_up = dy * torch.nn.functional.gelu(gate, approximate=approximate)
    gate.copy_(torch.ops.aten.gelu_backward(dy * up, gate, approximate=approximate))
    up.copy_(d_up)


_LIMIT, _SHARPNESS = 7.0, 1.702
"""Largest gate and largest size of what it multiplies in gpt-oss, and the factor in its sigmoid."""


@compiled_on_gpu
def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Returns g sigmoid(1.702 g) (u + 1), where g is the gate up to 7 and u is `up` within -7 .. 7."""
    gate = gate.clamp(max=_LIMIT)
    return gate * torch.sigmoid(_SHARPNESS * gate) * (up.clamp(-_LIMIT, _LIMIT) + 1)


@compiled_on_gpu
def clamped_swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> None:
    """Overwrites gate and up with their gradients."""
    g, u = gate.clamp(max=_LIMIT), up.clamp(-_LIMIT, _LIMIT) + 1
    share = torch.sigmoid(_SHARPNESS * g)
    d_gate = dy * u * share * (1 + _SHARPNESS * g * (1 - share)) * (gate <= _LIMIT)
    up.copy_(dy * g * share * (up.abs() <= _LIMIT))
    gate.copy_(d_gate)


class GatedFunction(Function):
    """The autograd function of activation(gate) * up, which saves only gate and up; their gradients overwrite them.

    Args:
        forward_, backward_: a pair such as `silu_mul` and `silu_mul_backward`.
        settings: further arguments of both.
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
