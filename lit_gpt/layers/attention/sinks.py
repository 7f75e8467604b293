"""Attention sinks (arXiv:2508.10925): a trained logit of each head beside the scores, whose share is dropped.

With the logit s of a head and the logsumexp l of its scores, the output y becomes y * sigmoid(l - s), and the logsumexp
of all logits log(exp(l) + exp(s)). Given both, the usual backward pass has the gradients of q, k and v right: the sink
is a key with a value of zero.

Shapes: T tokens, H query heads, D head size.
"""

import torch
from torch import Tensor


def with_sinks(y: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the output (T, H, D) with sinks, and the logsumexp of all logits, (T, H) in fp32.

    Args:
        y, lse: the output without sinks, and the logsumexp of its scores, (T, H).
        sinks: (H,).
    """
    lse, sinks = lse.float(), sinks.float()
    return (y * torch.sigmoid(lse - sinks).unsqueeze(-1)).to(y.dtype), torch.logaddexp(lse, sinks)


def softmax_with_sinks(scores: Tensor, sinks: Tensor) -> Tensor:
    """Returns the probabilities of scores (..., S) in fp32; with those of the sinks, (..., 1), they sum to one."""
    highest = torch.maximum(scores.amax(-1, keepdim=True), sinks).float()
    p = (scores - highest).exp()
    return p / (p.sum(-1, keepdim=True) + (sinks - highest).exp())


def sinks_gradient(dy: Tensor, y: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Returns the gradient of the sinks, (H,), for y (T, H, D) with sinks and the logsumexp of all logits, (T, H)."""
    share = (sinks.float() - lse).exp()
    return -(share * (dy.float() * y.float()).sum(-1)).sum(0).to(sinks.dtype)
