"""Arguments of text generation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError

_RANGES = {
    "temperature": {"at_least": 0},
    "top_k": {"at_least": 1},
    "top_p": {"above": 0, "at_most": 1},
    "min_p": {"at_least": 0, "at_most": 1},
    "repetition_penalty": {"above": 0, "at_most": 1e6},
    "presence_penalty": {"at_least": -1e6, "at_most": 1e6},
    "frequency_penalty": {"at_least": -1e6, "at_most": 1e6},
}
"""Penalties have limits since the products of infinite ones and 0 are no numbers."""


def require_ranges(settings: object) -> None:
    """Checks what every way to ask for sampling has by these names; raises UserError for a value out of its range."""
    for name, limits in _RANGES.items():
        if (value := getattr(settings, name, None)) is not None:
            require(name, value, **limits)


@dataclass(frozen=True)
class SamplingArgs:
    """Arguments of sampling."""

    max_new_tokens: int = 50
    """Most tokens to generate; the end-of-sequence token ends a text earlier."""
    min_new_tokens: int = 0
    """Tokens before which nothing but the context's length ends a text."""
    ignore_eos: bool = False
    """Go on after tokens that end a text, up to max_new_tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it, as in '["\\\\n\\\\n", "Question:"]'."""
    top_k: int | None = 200
    """Sample from the k most likely tokens only."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities together reach top_p only."""
    min_p: float = 0.0
    """Sample from tokens that are at least min_p times as likely as the most likely one only."""
    temperature: float = 0.8
    """Temperature, which divides the logits; 0 is greedy decoding."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and the text less likely if above 1: divides positive logits, multiplies others."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the text has."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that the text has it."""
    seed: int = 1234
    """Seed of sampling."""
    speculate: Literal["ngram", "none"] | None = None
    """Guess several tokens, all of which one pass checks: texts come sooner, and stay the same. ngram looks them up in
    the text itself; if not given, ngram unless the model is compiled."""
    speculative_tokens: int = 8
    """Most tokens that are guessed at a time; fewer are where guesses are wrong."""
    draft_dir: Path | None = None
    """Folder of a smaller checkpoint with the same tokenizer, which guesses instead."""

    def __post_init__(self) -> None:
        require("max_new_tokens", self.max_new_tokens, at_least=1)
        require("min_new_tokens", self.min_new_tokens, at_least=0)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"--min_new_tokens {self.min_new_tokens} is more than --max_new_tokens {self.max_new_tokens}"
            )
        require("speculative_tokens", self.speculative_tokens, at_least=1)
        if self.draft_dir is not None and self.speculate == "none":
            raise UserError("--draft_dir speculates, and --speculate none does not; leave one out")
        require_ranges(self)

    @property
    def asks_to_speculate(self) -> bool:
        """Whether speculation is asked for, and not just left to happen."""
        return self.draft_dir is not None or self.speculate == "ngram"


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
        require_ranges(self)
