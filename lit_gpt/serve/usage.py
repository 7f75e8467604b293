"""The numbers of tokens of a request."""

from collections.abc import Sequence
from typing import Any

from lit_gpt.generation.engine import Answer
from lit_gpt.generation.request import Delta


class Usage:
    """Counts the tokens of prompts, each once, and of all texts that were generated."""

    def __init__(self) -> None:
        self.n_prompt = self.n_new = self.n_cached = 0

    def add(self, ids: Sequence[int], answers: Sequence[Answer | Delta]) -> None:
        """Counts a prompt with its answers, or with parts of them."""
        self.n_prompt += len(ids)
        self.n_new += sum(len(a.tokens) for a in answers)
        self.n_cached += answers[0].n_cached if answers else 0

    def shown(self) -> dict[str, Any]:
        """Returns the numbers in OpenAI's form."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_new,
            "total_tokens": self.n_prompt + self.n_new,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
        }
