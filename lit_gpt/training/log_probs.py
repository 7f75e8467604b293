"""Log-probabilities of target tokens, through which a loss of them can be differentiated."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lit_gpt.data.batches import AnswerBatch, Batch
from lit_gpt.model import GPT
from lit_gpt.training.loss import LOGITS, Hidden, token_losses


def target_log_probs(model: GPT, batch: Batch, hidden_of: Hidden | None = None) -> Tensor:
    """Returns the log-probability of each target, (n_targets,) in fp32.

    The output projection is computed for positions with a target only, some at a time.
    """
    hidden = (hidden_of or model.hidden)(batch.ids[None], documents=batch.documents).flatten(0, 1)  # (T, C)
    trained = [p for p in model.lm_head.parameters() if p.requires_grad]
    return _HeadLogProbs.apply(hidden, batch.predicting, batch.targets, batch.documents.keys, model, *trained)


def answer_log_probs(model: GPT, batch: AnswerBatch, hidden_of: Hidden | None = None) -> Tensor:
    """Returns the log-probability of each answer, (n_answers,) in fp32: the sum over its targets."""
    return _sums(target_log_probs(model, batch, hidden_of), batch)


def _sums(values: Tensor, batch: AnswerBatch) -> Tensor:
    """Returns the sum of a value of each target, (n_targets,), over every answer, (n_answers,)."""
    return values.new_zeros(batch.n_answers).index_add(0, batch.answer, values)


class _HeadLogProbs(Function):
    """Output projection and log-softmax at the targets, some rows at a time: all logits at once never exist.

    Each target has its own row of `hidden`, so the gradient by that row is its own gradient times that of the loss: it
    is computed along with the log-probability, and scaled in backward. What trains in the output projection has a
    gradient that sums over rows: there, backward computes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, predicting: Tensor, targets: Tensor, keys: Tensor | None, model: GPT, *trained: Tensor
    ) -> Tensor:
        ctx.model, ctx.shape, ctx.dtype, ctx.keys = model, hidden.shape, hidden.dtype, keys
        ctx.again = bool(trained) and any(ctx.needs_input_grad)
        ctx.autocast = torch.is_autocast_enabled(hidden.device.type), torch.get_autocast_dtype(hidden.device.type)
        found, kept = [], []
        for at, wanted in _parts(predicting, targets, model):
            with torch.set_grad_enabled(ctx.needs_input_grad[0] and not ctx.again):
                x = hidden.index_select(0, at).detach().requires_grad_(ctx.needs_input_grad[0])
                model.draws.keys = None if keys is None else keys.index_select(0, at)
                logits = model.logits(x)
            losses, d_logits = token_losses(logits.detach(), wanted)
            found.append(-losses)
            if logits.requires_grad:
                kept.append(torch.autograd.grad(logits, x, d_logits.neg_())[0].to(hidden.dtype))
        ctx.save_for_backward(predicting, targets, *([hidden, *trained] if ctx.again else kept))
        return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        predicting, targets, *saved = ctx.saved_tensors
        if ctx.again:
            return _computed_again(ctx, predicting, targets, d_out, *saved)
        d_hidden = torch.zeros(ctx.shape, dtype=ctx.dtype, device=d_out.device)
        if saved:
            d_hidden.index_copy_(0, predicting, torch.cat(saved) * d_out[:, None].to(ctx.dtype))
        return d_hidden, None, None, None, None


def _computed_again(
    ctx: Any, predicting: Tensor, targets: Tensor, d_out: Tensor, hidden: Tensor, *trained: Tensor
) -> tuple[Tensor | None, ...]:
    """Returns the gradients by the arguments of `_HeadLogProbs`, whose logits are computed once more."""
    has_hidden = ctx.needs_input_grad[0]
    d_hidden, d_trained = torch.zeros_like(hidden), [torch.zeros_like(p) for p in trained]
    enabled, dtype = ctx.autocast
    parts = zip(_parts(predicting, targets, ctx.model), d_out.split(_n_rows(ctx.model)), strict=True)
    with torch.enable_grad(), torch.autocast(hidden.device.type, dtype, enabled):
        for (at, wanted), weights in parts:
            x = hidden.index_select(0, at).detach().requires_grad_(has_hidden)
            ctx.model.draws.keys = None if ctx.keys is None else ctx.keys.index_select(0, at)
            logits = ctx.model.logits(x)
            d_logits = token_losses(logits.detach(), wanted)[1].mul_(-weights[:, None].to(logits.dtype))
            gradients = list(torch.autograd.grad(logits, [x, *trained] if has_hidden else trained, d_logits))
            if has_hidden:
                d_hidden.index_copy_(0, at, gradients.pop(0).to(hidden.dtype))
            for sum_, g in zip(d_trained, gradients, strict=True):
                sum_ += g
    return d_hidden if has_hidden else None, None, None, None, None, *d_trained


def _n_rows(model: GPT) -> int:
    """Returns the number of rows of logits that exist at a time."""
    return max(16, LOGITS // model.config.padded_vocab_size)


def _parts(predicting: Tensor, targets: Tensor, model: GPT) -> list[tuple[Tensor, Tensor]]:
    n = _n_rows(model)
    return list(zip(predicting.split(n), targets.split(n), strict=True)) if len(targets) else []
