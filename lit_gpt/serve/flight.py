"""The texts of one HTTP request on their way through the engine, seen from the event loop.

The engine delivers on its own thread. What it delivers goes to the loop in batches: one wake-up of the loop for all
that came since the last one, however many clients there are.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from lit_gpt.generation.engine import Answer, joined
from lit_gpt.generation.request import Delta, Request
from lit_gpt.serve.refusals import Refusal

_MOST_UNREAD = 2**20
"""Most characters, with 16 for each alternative of a token, that wait for a client which does not read its stream."""


class Post:
    """Carries deltas from the engine's thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._sent: list[tuple[Flight, int, Delta]] = []
        self._is_called = False

    def put(self, flight: "Flight", index: int, delta: Delta) -> None:
        """Takes a delta of a flight's text, from any thread."""
        with self._lock:
            self._sent.append((flight, index, delta))
            if self._is_called:
                return
            self._is_called = True
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        with self._lock:
            sent, self._sent, self._is_called = self._sent, [], False
        for flight, index, delta in sent:
            flight.receive(index, delta)


class Flight:
    """The texts of one HTTP request; to be closed, which cancels those that have not ended.

    Args:
        requests: what the engine is asked.
        streams: whether deltas are read as they come; otherwise all at the end.
        seconds: time after which the texts are given up.
        landed: called once, when the engine does nothing for this flight any more.
    """

    def __init__(
        self, requests: Sequence[Request], *, streams: bool, seconds: float, landed: Callable[["Flight"], None]
    ) -> None:
        self.requests, self.streams, self._landed = requests, streams, landed
        self.tickets: list[int] = []
        self.cancel: Callable[[int], None] = lambda ticket: None
        self.seconds, self.started = seconds, time.monotonic()
        self._deltas: list[list[Delta]] = [[] for _ in requests]
        self._unread: list[tuple[int, Delta]] = []
        self._n_unread, self._left, self._is_closed = 0, len(requests), False
        self._failure: Refusal | None = None
        self._news = asyncio.Event()
        self.overflowed = asyncio.Event()
        """Set when the client does not read its stream; nothing more is kept for it."""
        self.first_at: float | None = None
        self._clock = asyncio.get_running_loop().call_later(seconds, self._expire)

    def submit(self, submit: Callable[[Request, Callable[[Delta], None]], int], post: Post) -> None:
        """Hands the requests to the engine, on any thread; if it refuses one, `settle` ends those before."""
        for i, request in enumerate(self.requests):
            self.tickets.append(submit(request, lambda delta, i=i: post.put(self, i, delta)))

    def receive(self, index: int, delta: Delta) -> None:
        """Takes a delta, on the loop's thread."""
        if self.first_at is None and delta.tokens:
            self.first_at = time.monotonic()
        if delta.finish is not None:
            self._left -= 1
            if self._left == 0:
                self._clock.cancel()
                self._landed(self)
        if self._is_closed:
            return
        if delta.finish == "error":
            self.fail(Refusal(500, f"the model failed: {delta.error}", code="engine_error"))
        elif delta.finish == "cancelled":
            self.fail(Refusal(503, "the server gave the request up", code="cancelled", retry_after=5))
        if not self.streams:
            self._deltas[index].append(delta)
            if self._left == 0:
                self._news.set()
            return
        self._unread.append((index, delta))
        self._n_unread += _size(delta)
        self._news.set()
        if self._n_unread > _MOST_UNREAD:
            self._unread.clear()
            self.overflowed.set()
            self.close()

    def fail(self, refusal: Refusal) -> None:
        """Makes whoever waits get an error."""
        self._failure = self._failure or refusal
        self._news.set()

    async def answers(self) -> list[Answer]:
        """Returns the whole texts, in order; raises Refusal if they are not to be had."""
        while self._left:
            await self._wait()
        if self._failure is not None:
            raise self._failure
        return [joined(found) for found in self._deltas]

    async def deltas(self) -> AsyncIterator[list[tuple[int, Delta]]]:
        """Yields what has come since the last time; raises Refusal if there is no more to be had."""
        while self._left or self._unread:
            if not self._unread:
                await self._wait()
            found, self._unread, self._n_unread = self._unread, [], 0
            if self._failure is not None:
                raise self._failure
            if found:
                yield found

    def _expire(self) -> None:
        self.fail(Refusal(504, f"the request took more than {self.seconds:g} seconds", code="timeout"))

    async def _wait(self) -> None:
        """Waits for news; raises Refusal if there was a failure or the time is over.

        Not by `asyncio.wait_for`, which before Python 3.12 may take no notice of being cancelled when news come in the
        same moment: whoever cancelled would wait for a stream of which nothing comes any more.
        """
        await self._news.wait()
        self._news.clear()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends what has not ended."""
        self._is_closed = True
        self._clock.cancel()
        if self._left:
            for ticket in self.tickets:
                self.cancel(ticket)

    def settle(self) -> None:
        """Ends everything after `submit` came to an end too early: some requests never reached the engine."""
        self.close()
        self._left -= len(self.requests) - len(self.tickets)
        if self._left == 0:
            self._landed(self)


def _size(delta: Delta) -> int:
    """Returns about how many characters a delta takes."""
    return len(delta.text) + 16 * sum(1 + len(t.top) for t in (*delta.tokens, *delta.prompt))
