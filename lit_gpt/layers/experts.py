"""A linear layer of all experts of a mixture in one pass: each multiplies its slice of rows that are sorted by expert.

Letters: E experts, R rows of all of them, M rows of the busiest one, K channels that are summed over, O outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.layers.cpu_matmul import matmul
from lit_gpt.layers.linear import LinearLayer

_MOST_PADDING = 4
"""Largest E M / R for which a GPU multiplies all slices at once, each filled up with zeros to M rows."""


def of_all(layers: Sequence[nn.Module], rows: Tensor, counts: Sequence[int]) -> Tensor | None:
    """Returns the outputs of all layers for their rows, (R, O), or None if layers of this kind are called one by one.

    A kind of layer that has another way than frozen ones says it in `of_experts(layers, rows, counts)`.

    Args:
        layers: those of one name in all experts.
        rows: (R, K), sorted by expert.
        counts: number of rows of each expert, R in sum.
    """
    kind = type(layers[0])
    if any(type(layer) is not kind for layer in layers):
        return None
    if (together := getattr(kind, "of_experts", None)) is not None:
        return together(layers, rows, counts)
    if not isinstance(layers[0], LinearLayer) or any(p.requires_grad for x in layers for p in x.parameters()):
        return None
    return _FrozenFunction.apply(rows, layers, counts)


class _FrozenFunction(Function):
    """The autograd function of frozen layers: only the rows get a gradient, and nothing is kept."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layers: Sequence[LinearLayer], counts: Sequence[int]) -> Tensor:
        ctx.layers, ctx.counts, ctx.dtype = layers, counts, rows.dtype
        return outputs(layers, rows, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        needed = ctx.needs_input_grad[0]
        return (input_gradients(ctx.layers, dy, ctx.counts).to(ctx.dtype) if needed else None), None, None


def outputs(layers: Sequence[LinearLayer], rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns the outputs of the layers for their rows, (R, O), without recording for autograd."""
    parts = zip(layers, rows.split(tuple(counts)), strict=True)
    return torch.cat([layer.forward_no_grad(part) for layer, part in parts if len(part)])


def input_gradients(layers: Sequence[LinearLayer], dy: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns the gradients of the layers' rows, (R, K), for those of their outputs, (R, O)."""
    parts = zip(layers, dy.split(tuple(counts)), strict=True)
    return torch.cat([layer.grad_input(part) for layer, part in parts if len(part)])


def grouped(x: Tensor, weights: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns the rows of x (R, K) multiplied by the matrix of their expert, (R, O), of weights (E, K, O)."""
    if (padding := _padding(x, counts)) is not None:
        slots, M = padding
        y = _padded(x, slots, len(counts), M) @ weights
        return y.flatten(0, 1).index_select(0, slots)
    parts = zip(x.split(tuple(counts)), weights, strict=True)
    return torch.cat([matmul(part, weight) for part, weight in parts if len(part)])


def grouped_outer(a: Tensor, b: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns a^T b of the rows of each expert, (E, K, O), for a (R, K) and b (R, O); zeros where it has no rows."""
    if (padding := _padding(a, counts)) is not None:
        slots, M = padding
        return _padded(a, slots, len(counts), M).mT @ _padded(b, slots, len(counts), M)
    found = a.new_zeros(len(counts), a.size(1), b.size(1))
    for i, (p, q) in enumerate(zip(a.split(tuple(counts)), b.split(tuple(counts)), strict=True)):
        if len(p):
            found[i] = matmul(p.T, q)
    return found


def _padding(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, int] | None:
    """Returns the slot of each row among E M ones, (R,), and M; None where the slices are multiplied one by one."""
    M = max(counts)
    if not _pads(x) or len(counts) * M > _MOST_PADDING * len(x):
        return None
    starts = torch.arange(len(counts)) * M
    before = torch.tensor([0, *counts[:-1]]).cumsum(0)
    shift = (starts - before).repeat_interleave(torch.tensor(counts))
    return (torch.arange(len(x)) + shift).to(x.device, non_blocking=True), M


def _pads(x: Tensor) -> bool:
    """Returns whether one large product costs less than several small ones: on a GPU, where each is a launch."""
    return x.is_cuda


def _padded(x: Tensor, slots: Tensor, E: int, M: int) -> Tensor:
    """Returns x (R, K) as a slice of M rows for each expert, (E, M, K), filled up with zeros."""
    return x.new_zeros(E * M, x.size(1)).index_copy_(0, slots, x).view(E, M, -1)
