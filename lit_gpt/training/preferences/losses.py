"""The losses of preferences, a dozen lines each: of a pair's log-probabilities, or of an answer's with its verdict.

B is the number of pairs (of answers, for `kto`). Log-probabilities are summed over the tokens of an answer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.args.preferences import PreferenceArgs


@dataclass(frozen=True)
class Pairs:
    """What a loss knows of each pair."""

    chosen: Tensor
    """(B,): log-probability of the preferred answer."""
    rejected: Tensor
    n_chosen: Tensor
    """(B,): number of tokens of the preferred answer."""
    n_rejected: Tensor
    reference_chosen: Tensor
    """(B,): its log-probability under the reference; 0 where a loss needs none."""
    reference_rejected: Tensor


_Rewards = tuple[Tensor, Tensor]
"""Implicit rewards of the preferred and the other answer, (B,) each."""


def dpo(pairs: Pairs, args: PreferenceArgs) -> tuple[Tensor, _Rewards]:
    """Returns DPO's loss, (B,), and rewards: -log sigmoid(r_w - r_l), where r = beta log(pi / pi_ref).

    https://arxiv.org/abs/2305.18290, equation 7. With label smoothing e, the loss is (1 - e) times this and e times
    that of the pair the other way round (https://ericmitchell.ai/cdpo.pdf, equation 3).
    """
    chosen = args.strength * (pairs.chosen - pairs.reference_chosen)
    rejected = args.strength * (pairs.rejected - pairs.reference_rejected)
    return _smoothed(chosen - rejected, args.label_smoothing), (chosen, rejected)


def ipo(pairs: Pairs, args: PreferenceArgs) -> tuple[Tensor, _Rewards]:
    """Returns IPO's loss, (B,), and rewards: (h - 1 / (2 beta))^2, where h is the difference of the log-ratios.

    https://arxiv.org/abs/2310.12036, equation 17 with tau = beta. Log-ratios are means over the tokens of an answer: as
    sums they would make the square grow with the length, and the paper's results are those of means, as TRL notes.
    """
    chosen = (pairs.chosen - pairs.reference_chosen) / pairs.n_chosen
    rejected = (pairs.rejected - pairs.reference_rejected) / pairs.n_rejected
    loss = (chosen - rejected - 1 / (2 * args.strength)).square()
    return loss, (args.strength * chosen, args.strength * rejected)


def simpo(pairs: Pairs, args: PreferenceArgs) -> tuple[Tensor, _Rewards]:
    """Returns SimPO's loss, (B,), and rewards: -log sigmoid(r_w - r_l - gamma), where r = beta log(pi) / length.

    https://arxiv.org/abs/2405.14734, equation 6. There is no reference.
    """
    chosen = args.strength * pairs.chosen / pairs.n_chosen
    rejected = args.strength * pairs.rejected / pairs.n_rejected
    return _smoothed(chosen - rejected - args.simpo_gamma, args.label_smoothing), (chosen, rejected)


def orpo(pairs: Pairs, args: PreferenceArgs) -> tuple[Tensor, _Rewards]:
    """Returns ORPO's loss, (B,), and rewards: NLL(w) - beta log sigmoid(log odds(w) - log odds(l)).

    https://arxiv.org/abs/2403.07691, equations 3 to 7: odds(y) = p / (1 - p), where p is the geometric mean of the
    probabilities of the tokens, and the NLL is the mean over the tokens of the preferred answer. There is no reference.
    """
    chosen, rejected = pairs.chosen / pairs.n_chosen, pairs.rejected / pairs.n_rejected
    odds = [x - torch.log(-torch.expm1(x.clamp(max=-1e-7))) for x in (chosen, rejected)]
    loss = -chosen - args.strength * F.logsigmoid(odds[0] - odds[1])
    return loss, (args.strength * chosen, args.strength * rejected)


def kto(ratios: Tensor, kl: Tensor, desirable: Tensor, args: PreferenceArgs) -> tuple[Tensor, Tensor]:
    """Returns KTO's loss and rewards, (B,) each: w (1 - sigmoid(r - z)), where r and z change
    places for undesired answers.

    https://arxiv.org/abs/2402.01306, equation 8, where r = beta log(pi / pi_ref) and z = beta KL.

    Args:
        ratios: (B,): log-probabilities of the answers, less those of the reference.
        kl: an estimate of the KL divergence from the reference, a scalar that is no less than 0.
        desirable: (B,) bool.
    """
    rewards = args.strength * ratios
    signed = torch.where(desirable, rewards - args.strength * kl, args.strength * kl - rewards)
    weights = torch.where(desirable, args.desirable_weight, args.undesirable_weight)
    return weights * (1 - torch.sigmoid(signed)), rewards


LOSSES = {"dpo": dpo, "ipo": ipo, "simpo": simpo, "orpo": orpo}
"""Name -> loss of pairs."""


def _smoothed(margin: Tensor, e: float) -> Tensor:
    """Returns -log sigmoid(margin), of which the part e has the sign turned."""
    return -(1 - e) * F.logsigmoid(margin) - e * F.logsigmoid(-margin)
