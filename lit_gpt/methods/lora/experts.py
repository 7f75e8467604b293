"""Low-rank updates of a linear layer of all experts of a mixture, in one pass over rows that are sorted by expert.

Letters: E experts, R rows of all of them, r rank in the matmuls (twice that of the updates with initial factors).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.layers.dropout import add_dropped, dropped
from lit_gpt.layers.experts import grouped, grouped_outer, input_gradients, outputs
from lit_gpt.layers.recompute import save, saved


def experts_output(layers: Sequence[Any], rows: Tensor, counts: Sequence[int]) -> Tensor | None:
    """Returns the outputs of the layers for their rows, (R, out_features); None if they are called one by one.

    That is so with magnitudes (DoRA), and where the layers have other ranks or scales. Dropout draws as the first
    layer does: what a token loses is the same in all of its experts.

    Args:
        layers: those of one name in all experts, each a `LoRALinear`.
        rows: (R, in_features), sorted by expert.
        counts: number of rows of each expert, R in sum.
    """
    first = layers[0]
    alike = all(x.scaling == first.scaling and x.lora_A[0].shape == first.lora_A[0].shape for x in layers)
    if not alike or len(first.lora_magnitude):
        return None
    p = first.dropout if first.training else 0.0
    trained = [x.lora_A[0] for x in layers], [x.lora_B[0] for x in layers]
    return _ExpertsFunction.apply(rows, layers, counts, p, *trained[0], *trained[1])


class _ExpertsFunction(Function):
    """The autograd function of `experts_output`; it saves the rows, or what they are made from again, and h = A x.

    Args:
        p: probability that a channel of a row is dropped on its way to A.
        trained: the A of each expert, then the B of each.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, layers: Sequence[Any], counts: Sequence[int], p: float, *trained: Tensor
    ) -> Tensor:
        first = layers[0]
        y = outputs([layer.linear for layer in layers], rows, counts)
        drawn = [first.draws.seed_of(first.number, rows.device)] if p else []
        if p and first.draws.keys is not None:
            drawn.append(first.draws.keys)
        A, B = _stacked(layers, trained, y.dtype)
        given = dropped(rows, drawn[0], p, *drawn[1:]) if drawn else rows
        h = grouped(given.to(y.dtype), A.mT, counts)  # (R, r)
        y.add_(grouped(h, B.mT, counts), alpha=first.scaling)
        ctx.layers, ctx.counts, ctx.p, ctx.dtype, ctx.n_drawn = layers, counts, p, rows.dtype, len(drawn)
        save(ctx, rows, h, *drawn, *trained)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, h, *rest = saved(ctx)
        layers, counts, p = ctx.layers, ctx.counts, ctx.p
        drawn, trained = rest[: ctx.n_drawn], rest[ctx.n_drawn :]
        A, B = _stacked(layers, trained, dy.dtype)
        given = dropped(rows, drawn[0], p, *drawn[1:]) if drawn else rows
        dh = grouped(dy, B, counts) * layers[0].scaling
        r = len(trained[0])  # initial factors, which follow, do not train
        dA = grouped_outer(dh, given.to(dy.dtype), counts)[:, :r].float()
        dB = grouped_outer(dy, h, counts)[..., :r].float() * layers[0].scaling
        dx = None
        if ctx.needs_input_grad[0]:
            dx, more = input_gradients([layer.linear for layer in layers], dy, counts), grouped(dh, A, counts)
            dx = (add_dropped(dx, more, drawn[0], p, *drawn[1:]) if drawn else dx.add_(more)).to(ctx.dtype)
        return dx, None, None, None, *dA.unbind(), *dB.unbind()


def _stacked(layers: Sequence[Any], trained: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns A (E, r, in_features) and B (E, out_features, r) of all experts, initial factors included."""
    A, B = torch.stack(tuple(trained[: len(layers)])), torch.stack(tuple(trained[len(layers) :]))
    if layers[0].lora_A_start is not None:
        A = torch.cat((A, torch.stack([x.get_buffer("lora_A_start") for x in layers])), 1)
        B = torch.cat((B, -torch.stack([x.get_buffer("lora_B_start") for x in layers])), 2)
    return A.to(dtype), B.to(dtype)
