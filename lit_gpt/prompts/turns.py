"""The turns of a conversation, and the exchanges of prompt and answer that a style makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation: what one side says."""

    role: _Role
    text: str
    context: str = ""
    """What a user's text refers to (Alpaca's `input`); empty if there is none, and for other roles."""
    taught: bool = True
    """Whether an answer is supervised (carries loss); ignored for other roles."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further keys of the message that a chat template may show: reasoning_content, tool_calls, tool_call_id, name."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and its answer, as texts with everything that a style puts around them."""

    prompt: str
    answer: str | None = None
    """The answer; None if it is still to be generated."""
    end: str | None = None
    """The token that ends the answer; None stands for the tokenizer's end-of-sequence token."""
    taught: bool = True
    """Whether the answer and the token that ends it are supervised (carry loss)."""
    ended: bool = True
    """Whether a token ends the answer here; False if the answer continues in the next exchange, or if a chat template
    marks the supervised part without its end."""
    continues: bool = False
    """Whether the answer is a further part of the previous one, with `prompt` between the two parts."""

    def text(self, eos: str) -> str:
        """Returns the prompt, the answer and the token that ends it; `eos` is the tokenizer's end-of-sequence token."""
        return self.prompt + (self.answer or "") + self.closing(eos)

    def closing(self, eos: str) -> str:
        """Returns the token that ends the answer; empty if there is no answer, or no token ends it here."""
        return (self.end or eos) if self.ended and self.answer is not None else ""
