"""A request on its way through the engine: its tokens so far, and the positions of the KV cache that are its own."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from lit_gpt.generation.batching.branches import Branches
from lit_gpt.generation.request import Delta, Request, Scored
from lit_gpt.generation.text import Text


class Row:
    """One request.

    Attributes:
        ids: the prompt and the new tokens.
        n: how many of them have their keys and values in the cache; it may be set back to take tokens back.
        start: where its extent begins in the pool; None while it waits.
        most_new: most tokens that it may generate, of which the last is never fed.

    Args:
        block_size: positions that the model has.
        long_from: length from which on LongRoPE has other frequencies; None without LongRoPE.
    """

    def __init__(
        self,
        ticket: int,
        request: Request,
        deliver: Callable[[Delta], None],
        text: Text,
        *,
        block_size: int,
        long_from: int | None,
    ) -> None:
        self.ticket, self.request, self.deliver, self.text = ticket, request, deliver, text
        n = len(request.ids)
        self.most_new = min(request.max_new_tokens, block_size + 1 - n)
        self.ids = [int(i) for i in request.ids]
        self.n_plain = n
        """Number of tokens that are a text, as others may begin; after them come those of `branches`."""
        self.branches = Branches(n, request.continuations) if request.continuations else None
        if self.branches is not None:
            self.ids += self.branches.ids
        self.prompt = np.array(self.ids, dtype=np.int32)
        self.slot: int | None = None
        self.start: int | None = None
        self.n = self.n_cached = 0
        self.scored: list[Scored] = []
        self.waits_for: tuple[Row, int] | None = None
        """A row that computes what this one begins with, and how many tokens that are."""
        self.ended = False
        self.scores_from = self.scored_from
        """Index of the first token of the prompt that is scored, for this request or one of its twins."""
        self.twins: list[Row] = []
        """Requests that only score, and feed the same tokens: this row computes their scores, too."""
        self.leader: Row | None = None
        """The row whose twin this one is."""
        length = min(n + self.most_new, block_size) if self.most_new else n - 1
        if self.branches is not None:
            length = int(self.branches.positions.max()) + 1
        self.is_long = long_from is not None and length > long_from
        """Whether LongRoPE's frequencies of long texts apply."""
        self.key: Hashable = request.run, self.is_long
        """Rows with another key never share keys and values."""
        self.draws = False
        """Whether the sampler knows it."""
        self.guessing: Any = None
        """What speculation knows of it."""
        self.n_draft = 0
        """Number of its tokens that a draft model has read, into the extent at `draft_start`."""
        self.draft_start: int | None = None

    @property
    def n_new(self) -> int:
        """Number of tokens generated so far."""
        return len(self.ids) - len(self.prompt)

    @property
    def end(self) -> int:
        """Number of tokens that are due to be fed; the last one of a prompt that is only scored is not."""
        return len(self.ids) if self.most_new or self.branches else len(self.ids) - 1

    @property
    def room(self) -> int:
        """Positions of the cache that it needs: those of all tokens that are ever fed."""
        return self.end if self.branches else len(self.prompt) + self.most_new - 1

    @property
    def scored_from(self) -> int:
        """Index of the first token of the prompt whose log-probability is asked for; that of none is past the end."""
        if self.branches is not None:
            return self.n_plain
        if self.request.prompt_logprobs is None:
            return len(self.prompt)
        return min(max(1, self.request.prompt_logprobs_from), len(self.prompt))

    @property
    def first_scored(self) -> tuple[Scored, ...]:
        """The first token of the prompt, which follows nothing, if it is among those that are scored."""
        asked = self.request.prompt_logprobs is not None and self.request.prompt_logprobs_from == 0
        return (Scored(self.ids[0]),) if asked else ()

    @property
    def n_top(self) -> int:
        """How many of the most likely tokens are wanted beside each token of the prompt, at most."""
        return max(row.request.prompt_logprobs or 0 for row in (self, *self.twins))

    @property
    def scores_prompt(self) -> bool:
        """Whether tokens of its prompt are still to be scored."""
        return self.n_new == 0 and self.branches is None and self.scores_from < len(self.prompt)

    @property
    def sharable(self) -> int:
        """Number of its first tokens that may be those of another text, if their scores are there where they are asked.

        A token that is drawn or scored needs the hidden state of the one before it, which is not kept: that one is fed.
        """
        if self.scores_prompt:
            return self.end
        return self.scores_from - 1 if self.n_new == 0 else len(self.ids) - 1

    def usable(self, scores: Sequence[Scored | None]) -> int:
        """Returns how many of its first tokens need not be fed if their keys and values are there, with these scores.

        Args:
            scores: those of its first tokens, or None for a token without one.
        """
        if not self.scores_prompt:
            return len(scores)
        n, n_top = min(len(scores), self.scores_from - 1), self.n_top
        while n < len(scores) - 1 and n < self.end - 1 and _has(scores[n + 1], n_top):
            n += 1
        return n

    def will_share(self, other: "Row", n: int) -> int:
        """Returns how many of its first tokens need not be fed once another row has fed the `n` that they share."""
        if not self.scores_prompt or n < self.scores_from:
            return n
        scored = other.branches is None and other.scores_from <= self.scores_from and other.n_top >= self.n_top
        return min(n, self.end) - 1 if scored else self.scores_from - 1

    def known(self) -> list[Scored | None]:
        """Returns the scores of its tokens that are in the cache, or None for a token without one."""
        if self.branches is not None or self.scores_from >= len(self.prompt):
            return [None] * min(self.n, self.n_plain)
        n = max(0, min(self.n, len(self.prompt)) - self.scores_from)
        found = [*[None] * min(self.n, self.scores_from), *self.scored[:n]]
        return [*found, *[None] * (self.n - len(found))]

    def take(self, scores: Sequence[Scored | None]) -> None:
        """Takes the scores of its first tokens as computed, as far as it wants them."""
        if self.scores_prompt:
            self.scored = [score for score in scores[self.scores_from :] if score is not None]

    @property
    def scores_until(self) -> int:
        """Number of tokens after which tokens of the prompt or of continuations may be scored."""
        return len(self.ids) if self.branches else len(self.prompt) - 1

    def targets(self, position: int) -> list[int]:
        """Returns the tokens to be scored after a position: one, or after the last that is fed those of all twins."""
        if self.branches is not None:
            return self.branches.targets(position)
        is_last = self.most_new == 0 and position == len(self.ids) - 2
        return [row.ids[position + 1] for row in (self, *(self.twins if is_last else ()))]

    def shares(self) -> "list[tuple[Row, tuple[Scored, ...]]]":
        """Returns this request and its twins, each with the scores of its prompt's tokens, once all are there."""
        members = (self, *self.twins)
        common, lasts = self.scored[: -len(members)], self.scored[-len(members) :]
        found = []
        for row, last in zip(members, lasts, strict=True):
            mine, n_top = [*common[row.scored_from - self.scores_from :], last], row.request.prompt_logprobs or 0
            found.append((row, tuple(_with_top(mine, n_top))))
        return found

    @property
    def scored_prompt(self) -> tuple[Scored, ...]:
        """The scores of the prompt's tokens, as the request wants them, once all are there."""
        return self.first_scored + tuple(_with_top(self.scored, self.request.prompt_logprobs or 0))

    @property
    def due(self) -> int:
        """Number of tokens that are known and not in the cache."""
        return self.end - self.n

    @property
    def reads(self) -> bool:
        """Whether it has tokens to read, rather than one that was just drawn."""
        return self.due > 1 or self.n_new == 0


def _has(score: Scored | None, n_top: int) -> bool:
    """Returns whether there is a score with at least so many of the most likely tokens."""
    return score is not None and len(score.top) >= n_top


def _with_top(scores: Sequence[Scored], n: int) -> list[Scored]:
    """Returns scores with `n` of the most likely tokens, of those that have more."""
    return [s if len(s.top) == n else s._replace(top=s.top[:n]) for s in scores]
