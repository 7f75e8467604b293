"""The loss of next-token prediction on target positions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from lit_gpt.data.batches import Batch
from lit_gpt.model import GPT

LOGITS = 2**23
"""Logits that exist at a time, about: 32 MB in fp32."""


def loss_sum(model: GPT, batch: Batch, hidden_of: Callable[..., Tensor] | None = None) -> Tensor:
    """Cross entropy in nats, summed over the targets. A scalar in fp32.

    The output projection is computed for positions with a target only: on the others there is nothing to learn, and
    with masked prompts they are the greater part.

    Args:
        hidden_of: what does the work of `model.hidden`, if not that itself.
    """
    hidden = (hidden_of or model.hidden)(batch.ids[None], documents=batch.documents).flatten(0, 1)  # (T, C)
    hidden = hidden.index_select(0, batch.predicting)  # (n_targets, C)
    trained = [p for p in model.lm_head.parameters() if p.requires_grad]
    return HeadLoss.apply(hidden, batch.targets, model, *trained)


class HeadLoss(Function):
    """Output projection and cross entropy, some rows at a time: the logits of a whole micro-batch never exist.

    The gradients are computed along with the loss, since they need the same logits; backward scales them.

    Args:
        hidden: (n_targets, C).
        targets: (n_targets,).
        model: whose `logits` are taken.
        trained: what trains in the output projection.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, targets: Tensor, model: GPT, *trained: Tensor) -> Tensor:
        rows = max(16, LOGITS // model.config.padded_vocab_size)
        ctx.has_hidden, needed = ctx.needs_input_grad[0], any(ctx.needs_input_grad)
        total = torch.zeros((), device=hidden.device)
        d_hidden = [torch.empty_like(hidden)] if ctx.has_hidden else []
        d_trained = [torch.zeros_like(p) for p in trained]
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            with torch.set_grad_enabled(needed):
                x = hidden[part].detach().requires_grad_(ctx.has_hidden)
                loss = F.cross_entropy(model.logits(x).float(), targets[part], reduction="sum")
            total += loss.detach()
            if needed:
                gradients = torch.autograd.grad(loss, [x, *trained] if ctx.has_hidden else trained)
                for sum_, g in zip([*(d[part].zero_() for d in d_hidden), *d_trained], gradients, strict=True):
                    sum_ += g
        ctx.save_for_backward(*d_hidden, *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [g * d_loss.to(g.dtype) for g in ctx.saved_tensors]
        d_hidden = scaled.pop(0) if ctx.has_hidden else None
        return d_hidden, None, None, *scaled
