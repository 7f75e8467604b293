"""A request on its way through the engine: its tokens so far, and the positions of the KV cache that are its own."""

from collections.abc import Callable, Hashable

import numpy as np

from lit_gpt.generation.request import Delta, Request, Scored
from lit_gpt.generation.text import Text


class Row:
    """One request.

    Attributes:
        ids: the prompt and the new tokens.
        n: how many of them have their keys and values in the cache; it may be set back to take tokens back.
        start: where its extent begins in the pool; None while it waits.
    """

    def __init__(
        self, ticket: int, request: Request, deliver: Callable[[Delta], None], text: Text, most_new: int
    ) -> None:
        self.ticket, self.request, self.deliver, self.text, self.most_new = ticket, request, deliver, text, most_new
        self.ids = [int(i) for i in request.ids]
        self.prompt = np.array(self.ids, dtype=np.int32)
        self.slot: int | None = None
        self.start: int | None = None
        self.n = self.n_cached = 0
        self.scored: list[Scored] = []
        self.waits_for: tuple[Row, int] | None = None
        """A row that computes what this one begins with, and how many tokens that are."""
        self.key: Hashable = request.run
        """Rows with another key never share keys and values."""
        self.is_long = False
        """Whether LongRoPE's frequencies of long texts apply."""
        self.draws = False
        """Whether the sampler knows it."""

    @property
    def n_new(self) -> int:
        """Number of tokens generated so far."""
        return len(self.ids) - len(self.prompt)

    @property
    def end(self) -> int:
        """Number of tokens that are due to be fed; the last one of a prompt that is only scored is not."""
        return len(self.ids) if self.most_new else len(self.ids) - 1

    @property
    def room(self) -> int:
        """Positions of the cache that it needs: those of all tokens that are ever fed."""
        return len(self.prompt) + self.most_new - 1

    @property
    def scored_from(self) -> int:
        """Index of the first token of the prompt whose log-probability is asked for; that of none is past the end."""
        if self.request.prompt_logprobs is None:
            return len(self.prompt)
        return min(max(1, self.request.prompt_logprobs_from), len(self.prompt))

    @property
    def reusable(self) -> int:
        """Tokens of the prompt whose hidden states nobody needs: their keys and values may be those of another row."""
        return min(self.scored_from, len(self.prompt)) - 1 if self.n_new == 0 else len(self.ids) - 1

    @property
    def due(self) -> int:
        """Number of tokens that are known and not in the cache."""
        return self.end - self.n

    @property
    def reads(self) -> bool:
        """Whether it has tokens to read, rather than one that was just drawn."""
        return self.due > 1 or self.n_new == 0
