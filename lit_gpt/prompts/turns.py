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
