"""The loss of next-token prediction on target positions."""

import torch.nn.functional as F
from torch import Tensor

from lit_gpt.data.store import IGNORE
from lit_gpt.model import GPT


def loss_sum(model: GPT, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in nats, summed over the targets: position t predicts `labels` at t + 1. A scalar in fp32.

    The output projection is computed for positions with a target only: on the others there is nothing to learn, and
    with masked prompts they are the greater part.

    Args:
        ids: (B, T).
        labels: (B, T), IGNORE where there is no target.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE
    hidden = model.hidden(ids)[:, :-1][chosen]  # (n_targets, C)
    logits = model.logits(hidden)  # (n_targets, V)
    return F.cross_entropy(logits.float(), targets[chosen], reduction="sum")
