"""The objectives of preferences: what a micro-batch of judged answers contributes to the loss of a step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.data.batches import AnswerBatch
from lit_gpt.model import GPT
from lit_gpt.report.metrics import PAIR_FIGURES
from lit_gpt.training.log_probs import answer_log_probs
from lit_gpt.training.loss import Hidden
from lit_gpt.training.preferences.losses import LOSSES, Pairs, kto


class _PairObjective:
    """The objective of pairs: one of LOSSES, perhaps with an SFT term."""

    figures: tuple[str, ...] = PAIR_FIGURES
    measure: Callable[..., list[float] | None] | None = None

    def __init__(self, args: PreferenceArgs) -> None:
        self.args = args

    def __call__(self, model: GPT, batch: AnswerBatch, hidden_of: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Returns the loss and the figures, each summed over the pairs of a batch."""
        found = answer_log_probs(model, batch, hidden_of)
        n = torch.bincount(batch.answer, minlength=batch.n_answers).clamp(min=1)
        (chosen, rejected), (n_chosen, n_rejected) = _paired(found), _paired(n)
        reference_chosen, reference_rejected = _paired(batch.reference)
        pairs = Pairs(
            chosen,
            rejected,
            n_chosen=n_chosen,
            n_rejected=n_rejected,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
        )
        losses, rewards = LOSSES[self.args.loss](pairs, self.args)
        if self.args.sft_weight:
            losses = losses - self.args.sft_weight * chosen / n_chosen
        good, bad = (reward.detach() for reward in rewards)
        figures = (good, bad, good - bad, (good > bad).float(), chosen.detach() / n_chosen)
        return losses.sum(), torch.stack([figure.sum() for figure in figures])

    def ends(self, first: dict[str, float], latest: dict[str, float]) -> str | None:
        """Returns why the run is to end, if preferred answers have become too improbable."""
        return _fallen(self.args.min_chosen_drop, first, latest)


def _paired(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns every other value of x (2 B,), from the first and from the second on, (B,) each; B may be 0."""
    return x[::2], x[1::2]


class _LabelObjective:
    """The objective of answers that are judged by themselves: KTO.

    The answer of each row is followed by one of another row (`with_others`), whose log-ratio estimates the KL
    divergence; the mean over a micro-batch counts for its rows, as in TRL.
    """

    figures: tuple[str, ...] = PAIR_FIGURES
    measure: Callable[..., list[float] | None] | None = None

    def __init__(self, args: PreferenceArgs) -> None:
        self.args = args

    def __call__(self, model: GPT, batch: AnswerBatch, hidden_of: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """Returns the loss and the figures, each summed over the rows of a batch.

        The reward of the desired answers is the mean over these: their sum is scaled by how few of the rows they are.
        """
        found = answer_log_probs(model, batch, hidden_of)
        ratios, desirable = (found - batch.reference).view(-1, 2), batch.desirable
        kl = ratios[:, 1].detach().mean().clamp(min=0)
        losses, rewards = kto(ratios[:, 0], kl, desirable, self.args)
        n = torch.bincount(batch.answer, minlength=batch.n_answers).view(-1, 2)[:, 0].clamp(min=1)
        means = found.view(-1, 2)[:, 0] / n
        if self.args.sft_weight:
            losses = losses - self.args.sft_weight * means * desirable
        good, bad = (_mean(rewards.detach(), chosen) for chosen in (desirable, ~desirable))
        right = ((rewards.detach() > self.args.strength * kl) == desirable).float().mean()
        figures = torch.stack([good, bad, good - bad, right, _mean(means.detach(), desirable)])
        return losses.sum(), figures * len(batch.rows)

    def ends(self, first: dict[str, float], latest: dict[str, float]) -> str | None:
        """Returns why the run is to end, if desired answers have become too improbable."""
        return _fallen(self.args.min_chosen_drop, first, latest)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the values where the mask is set; 0 where it nowhere is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _fallen(most: float | None, first: dict[str, float], latest: dict[str, float]) -> str | None:
    """Returns a line if the mean log-probability of preferred answers fell by more than `most`, in nats a token."""
    before, now = first.get("chosen_logp", math.nan), latest.get("chosen_logp", math.nan)
    if most is None or not before - now > most:
        return None
    return (
        f"--min_chosen_drop {most:g} ends the run: preferred answers lost {before - now:.3f} nats a token since the "
        f"start ({before:.3f}, now {now:.3f}); a larger --beta, a lower --learning_rate or --sft_weight holds them"
    )


def objective_of(args: PreferenceArgs) -> _PairObjective | _LabelObjective:
    """Returns the objective of a run."""
    return _LabelObjective(args) if args.loss == "kto" else _PairObjective(args)
