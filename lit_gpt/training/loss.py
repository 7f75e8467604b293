"""What a run minimizes: an objective, of which the first is the loss of next-token prediction on target positions."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.data.batches import Batch
from lit_gpt.model import GPT

Hidden = Callable[..., Tensor]
"""Takes the place of `model.hidden`, such as a recording of it."""
LOGITS = 2**23
"""Approximate number of logits that exist at a time: 32 MB in fp32."""
_IN_CACHE = 2**20
"""Approximate number of them that are in fp32 at a time on a CPU: 4 MB."""


class Objective(Protocol):
    """What a run minimizes: a sum over the terms of a micro-batch, which a step divides by the number of its terms."""

    figures: tuple[str, ...]
    """Names of what is reported beside the loss, columns of metrics.csv."""

    @property
    def measure(self) -> Callable[..., list[float] | None] | None:
        """Function (model, data, n, stopped) that returns loss and figures of the first n validation samples.

        Of the figures it may return the first ones only. It returns None where it was stopped. Without it, this
        objective is computed on the samples.
        """
        ...

    def __call__(self, model: GPT, batch: Any, hidden_of: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over the terms of a batch, a scalar in fp32, and so each of the figures, (n,)."""
        ...

    def ends(self, first: dict[str, float], latest: dict[str, float]) -> str | None:
        """Returns why the run is to end after a validation, if it is.

        Args:
            first, latest: figures of the first validation and of this one.
        """
        ...


class _NextToken:
    """The objective of next-token prediction."""

    figures: tuple[str, ...] = ()
    measure: Callable[..., list[float] | None] | None = None

    def __call__(self, model: GPT, batch: Batch, hidden_of: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over the targets of a batch, and no figures."""
        loss = loss_sum(model, batch, hidden_of)
        return loss, loss.new_zeros(0)

    def ends(self, first: dict[str, float], latest: dict[str, float]) -> None:
        """Returns None: this objective ends no run."""


NEXT_TOKEN = _NextToken()


def loss_sum(model: GPT, batch: Batch, hidden_of: Hidden | None = None) -> Tensor:
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

    The gradient overwrites the logits.
    """
    losses, d_logits = token_losses(logits, targets)
    return losses.sum(), d_logits


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss of each of (n, V) logits and (n,) targets, (n,) in fp32, and its gradient by the logits.

    On a CPU only as many rows are in fp32 at a time as its cache holds. The gradient overwrites the logits, which are
    the largest tensor of the step.
    """
    n = len(logits) if logits.is_cuda else max(1, _IN_CACHE // logits.size(-1))
    losses = torch.empty_like(targets, dtype=torch.float32)
    for part, at, loss in zip(*(x.split(n) for x in (logits, targets, losses)), strict=True):
        log_p = torch.log_softmax(part, -1, dtype=torch.float32)
        torch.neg(log_p.gather(-1, at.unsqueeze(-1)).squeeze(-1), out=loss)
        part.copy_(log_p.exp_().scatter_add_(-1, at.unsqueeze(-1), -torch.ones_like(loss).unsqueeze(-1)))
    return losses, logits


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
