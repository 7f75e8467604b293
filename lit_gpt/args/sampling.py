"""Arguments of text generation."""

from dataclasses import dataclass
from typing import Any

from lit_gpt.args.require import require

_BOUNDS = {
    "temperature": {"at_least": 0},
    "top_k": {"at_least": 1},
    "top_p": {"above": 0, "at_most": 1},
    "min_p": {"at_least": 0, "at_most": 1},
    "repetition_penalty": {"above": 0},
}
"""Bounds of the settings by which a token is drawn, as arguments of `require`."""


def require_drawable(settings: Any) -> None:
    """Checks those settings of _BOUNDS that `settings` has as attributes.

    Raises:
        UserError: a value is out of its range.
    """
    for name, bounds in _BOUNDS.items():
        if (value := getattr(settings, name, None)) is not None:
            require(name, value, **bounds)


@dataclass(frozen=True)
class SamplingArgs:
    """Arguments of sampling."""

    max_new_tokens: int = 50
    """Most tokens to generate; the end-of-sequence token ends a text earlier."""
    top_k: int | None = 200
    """Sample from the k most likely tokens only."""
    temperature: float = 0.8
    """Temperature, which divides the logits; 0 is greedy decoding."""
    seed: int = 1234
    """Seed of sampling."""

    def __post_init__(self) -> None:
        require("max_new_tokens", self.max_new_tokens, at_least=1)
        require_drawable(self)


@dataclass(frozen=True)
class ChatArgs:
    """Arguments of sampling in a chat, which its command /set changes."""

    max_new_tokens: int = 512
    """Most tokens of an answer; the end-of-sequence token ends it earlier."""
    temperature: float = 0.7
    """Temperature, which divides the logits; 0 is greedy decoding."""
    top_p: float = 0.95
    """Sample from the most likely tokens whose probabilities together reach top_p; 1 samples from all."""
    top_k: int | None = None
    """Sample from the k most likely tokens only."""
    min_p: float = 0.0
    """Sample from tokens that are at least min_p times as likely as the most likely one; 0 samples from all."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that the conversation has, if they are positive; 1 changes nothing."""
    seed: int = 1234
    """Seed of the first answer; each further answer has the next one."""

    def __post_init__(self) -> None:
        require("max_new_tokens", self.max_new_tokens, at_least=1)
        require_drawable(self)
