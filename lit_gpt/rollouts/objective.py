"""The objective of GRPO: answers that are better than their group become more probable, within the clip."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.data.store import Samples
from lit_gpt.model import GPT
from lit_gpt.report.metrics import ROLLOUT_FIGURES
from lit_gpt.rollouts.drawing import Drawing
from lit_gpt.rollouts.rollout import RolloutBatch
from lit_gpt.training.log_probs import target_log_probs
from lit_gpt.training.loss import Hidden


def grpo(logs: Tensor, old: Tensor, base: Tensor, advantage: Tensor, args: GrpoArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss of each token, (n,), whether it is clipped, and its divergence from the base.

    -min(r A, clip(r, 1 - e, 1 + e) A) + beta r (exp(d) - d - 1), where r = pi / pi_old and d = log pi_base - log pi
    (https://arxiv.org/abs/2402.03300, equations 3 and 4). The divergence is weighted by r, as tokens were drawn from
    pi_old: without that, its gradient is not that of the divergence, even where r is 1 (arXiv:2512.02556).

    Args:
        logs, old, base: (n,): log-probabilities of now, at the rollout, and without the updates.
        advantage: (n,): that of the token's answer.
    """
    ratio = torch.exp(logs - old)
    clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
    losses = -torch.minimum(ratio * advantage, clipped * advantage)
    is_clipped = ((ratio < 1 - args.clip) & (advantage < 0)) | ((ratio > 1 + args.clip) & (advantage > 0))
    if not args.kl_weight:
        return losses, is_clipped, torch.zeros_like(logs)
    d = base - logs
    kl = ratio * (torch.exp(d) - d - 1)
    return losses + args.kl_weight * kl, is_clipped, kl.detach()


class GrpoObjective:
    """The objective of a run on graded answers.

    Args:
        drawing: draws and grades the answers of validation.
    """

    figures: tuple[str, ...] = ROLLOUT_FIGURES

    def __init__(self, drawing: Drawing) -> None:
        self.args, self.drawing = drawing.args, drawing

    def __call__(self, model: GPT, batch: RolloutBatch, hidden_of: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Returns the loss and the figures, each summed over the answers of a batch."""
        logs = target_log_probs(model, batch, hidden_of)
        old = torch.where(batch.old.isnan(), logs.detach(), batch.old)
        losses, clipped, kl = grpo(logs, old, batch.base, advantage=batch.advantage[batch.answer], args=self.args)
        n = torch.bincount(batch.answer, minlength=batch.n_answers).clamp(min=1)
        share = (1.0 / n)[batch.answer]
        weights = share if self.args.normalization == "grpo" else 1 / self.args.max_new_tokens
        sums = [batch.rewards.sum(), n.sum().float(), batch.idle.sum(), (clipped * share).sum(), (kl * share).sum()]
        figures = torch.stack([x.float() for x in sums])
        figures[:3] += batch.more
        return (losses * weights).sum(), figures.detach()

    def measure(self, model: GPT, data: Samples, n: int, stopped: Callable[[], object]) -> list[float] | None:
        """Returns one less the mean reward of answers to validation prompts in place of a loss, reward and tokens.

        The other figures are those of groups that are learned from.
        """
        found = self.drawing.measured(model, data, n, stopped)
        return None if found is None else [1 - found[0], *found]

    def ends(self, first: dict[str, float], latest: dict[str, float]) -> None:
        """Returns None: this objective ends no run."""
