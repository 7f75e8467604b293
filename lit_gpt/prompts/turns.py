"""What is said in a conversation, and by whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: _Role
    text: str
    context: str = ""
    """What a user's text refers to (Alpaca's `input`); may be empty, and is for other roles."""
    taught: bool = True
    """Whether an answer carries loss; without meaning for other roles."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further keys of the message that a chat template may show: reasoning_content, tool_calls, tool_call_id, name."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and its answer, as texts with everything that a style puts around them."""

    prompt: str
    answer: str | None = None
    """None if it is still to be given."""
    end: str | None = None
    """The token that ends the answer; None is the tokenizer's end of sequence."""
    taught: bool = True
    """Whether the answer and the token that ends it carry loss."""
    ended: bool = True
    """Whether a token ends the answer here: not where it goes on in the next exchange, nor where a chat template marks
    what is taught and leaves the end out."""
    continues: bool = False
    """Whether the answer is a further part of the one before, with `prompt` between them."""
