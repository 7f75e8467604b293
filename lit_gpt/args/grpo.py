"""Arguments of learning from graded answers of the model's own."""

from dataclasses import dataclass, field
from typing import Literal

from lit_gpt.args.require import require


@dataclass(frozen=True)
class GrpoArgs:
    """Arguments of learning from graded answers of the model's own: GRPO (https://arxiv.org/abs/2402.03300)."""

    group_size: int = 8
    """Answers to each prompt, drawn at temperature 1; each is held against the mean of its group."""
    max_new_tokens: int = 128
    """Most tokens of an answer; one that is longer is wrong."""
    normalization: Literal["dr_grpo", "grpo"] = "dr_grpo"
    """dr_grpo divides the loss of every answer by max_new_tokens and leaves rewards as they are (arXiv:2503.20783);
    grpo divides by the answer's own length and rewards by their deviation in the group, which favours long
    wrong answers."""
    clip: float = 0.2
    """How far a token's probability may move from that at the rollout before it has no gradient: by this share."""
    kl_weight: float = 0.0
    """Weight of the divergence from the model with its LoRA updates switched off."""
    steps_per_rollout: int = 1
    """Optimizer steps whose answers are drawn together, from the weights before the first of them. More are faster, and
    the later steps learn from answers of older weights."""
    rollout_rows: int = field(default=64, metadata={"free": True})
    """Answers that are written at once."""

    def __post_init__(self) -> None:
        require("group_size", self.group_size, at_least=2)
        for name in ("max_new_tokens", "steps_per_rollout", "rollout_rows"):
            require(name, getattr(self, name), at_least=1)
        require("clip", self.clip, above=0)
        require("kl_weight", self.kl_weight, at_least=0)
