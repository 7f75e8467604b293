"""The loss of next-token prediction on target positions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.data.batches import Batch
from lit_gpt.model import GPT

LOGITS = 2**23
"""Approximate number of logits that exist at a time: 32 MB in fp32."""


def loss_sum(model: GPT, batch: Batch, hidden_of: Callable[..., Tensor] | None = None) -> Tensor:
    """Returns the cross entropy in nats, summed over the targets: a scalar in fp32.

    The output projection is computed for positions with a target only. The others carry no loss, and with masked
    prompts they are the greater part.

    Args:
        hidden_of: takes the place of `model.hidden`, such as a recording of it.
    """
    hidden = (hidden_of or model.hidden)(batch.ids[None], documents=batch.documents).flatten(0, 1)  # (T, C)
    trained = [p for p in model.lm_head.parameters() if p.requires_grad]
    return _HeadLoss.apply(hidden, batch.predicting, batch.targets, batch.documents.keys, model, *trained)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the summed loss of (n, V) logits and (n,) targets, a scalar in fp32, and its gradient by the logits.

    The gradient overwrites the probabilities in place: they are the largest tensor of the step.
    """
    h = logits.float()
    highest = h.amax(-1, keepdim=True)
    p = (h - highest).exp_()
    total = p.sum(-1, keepdim=True)
    loss = (highest + total.log() - h.gather(-1, targets.unsqueeze(-1))).sum()
    p.div_(total).scatter_add_(-1, targets.unsqueeze(-1), -torch.ones_like(total))
    return loss, p.to(logits.dtype)


class _HeadLoss(Function):
    """Output projection and cross entropy, some rows at a time: the logits of a whole micro-batch never exist.

    The gradients are computed along with the loss, since they need the same logits; backward scales them in place.

    Args:
        hidden: (T, C).
        predicting: (n_targets,), the rows of `hidden` that predict a target.
        targets: (n_targets,).
        keys: key of each row of `hidden` for dropout, (T,), or None.
        model: whose `logits` are taken.
        trained: what trains in the output projection.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, predicting: Tensor, targets: Tensor, keys: Tensor | None, model: GPT, *trained: Tensor
    ) -> Tensor:
        rows = max(16, LOGITS // model.config.padded_vocab_size)
        ctx.has_hidden, needed = ctx.needs_input_grad[0], any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = [torch.zeros_like(hidden)] if ctx.has_hidden else []
        d_trained = [torch.zeros_like(p) for p in trained]
        for at, wanted in zip(predicting.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(needed):
                x = hidden.index_select(0, at).detach().requires_grad_(ctx.has_hidden)
                model.draws.keys = None if keys is None else keys.index_select(0, at)
                logits = model.logits(x)
            loss, d_logits = cross_entropy(logits.detach(), wanted)
            total += loss
            if needed:
                gradients = list(torch.autograd.grad(logits, [x, *trained] if ctx.has_hidden else trained, d_logits))
                if ctx.has_hidden:
                    d_hidden[0].index_copy_(0, at, gradients.pop(0).to(hidden.dtype))
                for sum_, g in zip(d_trained, gradients, strict=True):
                    sum_ += g
        ctx.save_for_backward(*d_hidden, *d_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [g.mul_(d_loss.to(g.dtype)) for g in ctx.saved_tensors]
        d_hidden = scaled.pop(0) if ctx.has_hidden else None
        return d_hidden, None, None, None, None, *scaled
