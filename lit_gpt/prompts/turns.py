"""What is said in a conversation, and by whom."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    text: str
    context: str = ""
    """What a user's text refers to (Alpaca's `input`); may be empty, and is for other roles."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and its answer, as texts with everything that a style puts around them."""

    prompt: str
    answer: str | None = None
    """None if it is still to be given."""
    end: str | None = None
    """The token that ends the answer; None is the tokenizer's end of sequence."""
