"""Arguments of learning from preferences."""

from dataclasses import dataclass, field
from typing import Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError

_Loss = Literal["dpo", "ipo", "simpo", "orpo", "kto"]
_DEFAULT_BETA = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1, "kto": 0.1}


@dataclass(frozen=True)
class PreferenceArgs:
    """Arguments of learning from preferences: the loss, and what it is held against."""

    loss: _Loss = "dpo"
    """dpo, ipo and kto hold the model against the reference, simpo and orpo need none; kto takes answers with a label,
    and pairs as two of those (docs/preferences.md)."""
    beta: float | None = None
    """How strongly: of dpo and kto, the scale of the rewards; of ipo, the regularization; of simpo, the scale of
    log-probabilities per token; of orpo, the weight of the odds ratio. 0.1 if not given, 2 for simpo."""
    label_smoothing: float = 0.0
    """Share of the pairs that are supposed to be the wrong way round (dpo and simpo)."""
    sft_weight: float = 0.0
    """Weight of the preferred answer's own loss per token, added to the loss."""
    simpo_gamma: float = 0.5
    """Margin by which simpo wants the reward of the preferred answer to be larger."""
    desirable_weight: float = 1.0
    """Weight of kto's desired answers; where they are fewer, raise it (the paper balances both to within 4/3)."""
    undesirable_weight: float = 1.0
    """Weight of kto's undesired answers."""
    min_chosen_drop: float | None = field(default=None, metadata={"free": True})
    """End the run at a validation where preferred answers have become less probable by more than this, in nats a token
    since the start; such runs increase the margin and write worse. 0 allows none; not watched if not given."""

    def __post_init__(self) -> None:
        if self.beta is not None:
            require("beta", self.beta, above=0)
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"--label_smoothing {self.label_smoothing} must be at least 0 and less than 0.5")
        for name in ("sft_weight", "simpo_gamma", "desirable_weight", "undesirable_weight"):
            require(name, getattr(self, name), at_least=0)
        if self.min_chosen_drop is not None:
            require("min_chosen_drop", self.min_chosen_drop, at_least=0)
        if self.label_smoothing and self.loss not in ("dpo", "simpo"):
            raise UserError(f"--label_smoothing goes with --loss dpo or simpo, not {self.loss}")
        if self.sft_weight and self.loss == "orpo":
            raise UserError("--loss orpo has an SFT term of weight 1 already; leave --sft_weight out")

    @property
    def strength(self) -> float:
        """The value of --beta, or the loss's default."""
        return _DEFAULT_BETA[self.loss] if self.beta is None else self.beta

    @property
    def has_reference(self) -> bool:
        """Whether the loss needs log-probabilities of the reference."""
        return self.loss in ("dpo", "ipo", "kto")
