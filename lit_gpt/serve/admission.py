"""Who is let in: as many requests as may wait and be kept, and none while the model is loaded or the server closes."""

import asyncio
from typing import Literal

from lit_gpt.serve.refusals import Refusal

_MOST_SCORES = 4_000_000
"""Log-probabilities that are kept at once, until they are sent: about 0.6 GB."""


class Admission:
    """The number of texts that are being answered or wait, of their log-probabilities, and of the bytes of bodies that
    are being read.

    Used on the event loop's thread only.

    Args:
        most: most texts at once.
        most_bytes: most bytes of bodies at once.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.state: Literal["loading", "open", "closing"] = "loading"
        self.n = self.n_scores = self.n_bytes = self.n_refused = 0
        self.left = asyncio.Event()
        """Set when nothing is being answered."""
        self.left.set()

    def require_open(self) -> None:
        """Checks that requests are taken; raises Refusal (503) if not."""
        if self.state == "loading":
            raise Refusal(503, "the model is being loaded; try again in a moment", code="loading", retry_after=5)
        if self.state == "closing":
            raise Refusal(503, "the server is shutting down", code="closing", retry_after=30)

    def enter(self, n: int, n_scores: int) -> None:
        """Lets a request of `n` texts in; raises Refusal if it asks for more than there can be, or for too many now.

        Args:
            n_scores: log-probabilities that its answer may have.
        """
        self.require_open()
        if n > self.most:
            raise Refusal(400, f"the request asks for {n:,} texts, and this server takes {self.most:,} at once")
        if n_scores > _MOST_SCORES:
            raise Refusal(
                400,
                f"the request asks for up to {n_scores:,} log-probabilities, and this server keeps {_MOST_SCORES:,} at "
                "once; send fewer prompts, or ask for fewer texts, tokens, or alternatives of a token",
            )
        if self.n + n > self.most or self.n_scores + n_scores > _MOST_SCORES:
            self.n_refused += 1
            raise Refusal(
                503, f"{self.n:,} texts are being answered or wait; try again later", code="full", retry_after=2
            )
        self.n += n
        self.n_scores += n_scores
        self.left.clear()

    def leave(self, n: int, n_scores: int) -> None:
        """Makes room for `n` texts, which are answered or given up."""
        self.n -= n
        self.n_scores -= n_scores
        if self.n == 0:
            self.left.set()

    def take_bytes(self, n: int) -> None:
        """Counts bytes of a body that has to be kept; raises Refusal (503) if there are too many of them."""
        if self.n_bytes + n > self.most_bytes:
            self.n_refused += 1
            raise Refusal(503, "too many large requests are being read; try again later", code="full", retry_after=2)
        self.n_bytes += n

    def give_bytes(self, n: int) -> None:
        """Counts bytes that are not kept any more."""
        self.n_bytes -= n
