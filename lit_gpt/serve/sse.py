"""Answers as server-sent events, which end with the client, with the time limit, or with the text."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lit_gpt.generation.request import Delta
from lit_gpt.serve.flight import Flight
from lit_gpt.serve.refusals import Refusal, dumped

_GRACE = 5
"""Seconds beyond its time limit for which a stream may still be written to a client that reads slowly."""


class EventStream(Response):
    """A response that streams the deltas of a flight, and closes the flight whatever happens.

    A client that does not read holds nobody up: the engine goes on, and beyond a bound of what is kept for the client
    the stream is broken off.

    Args:
        parts: returns the chunks that a delta of a text becomes.
        last: returns the chunks that follow the last delta.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        flight: Flight,
        parts: Callable[[int, Delta], Iterable[dict[str, Any]]],
        last: Callable[[], Iterable[dict[str, Any]]],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.flight, self.parts, self.last = flight, parts, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.ensure_future(self._write(send)),
            asyncio.ensure_future(gone(receive)),
            asyncio.ensure_future(self.flight.overflowed.wait()),
        ]
        try:
            await asyncio.wait(tasks, timeout=self.flight.seconds + _GRACE, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            self.flight.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(OSError):  # the client is gone
            async for data in self._events():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        """Yields events, those of one wake-up together; an error is one of them."""
        try:
            async for news in self.flight.deltas():
                chunks = [chunk for index, delta in news for chunk in self.parts(index, delta)]
                if chunks:
                    yield b"".join(map(_event, chunks))
            yield b"".join(map(_event, self.last()))
        except Refusal as refusal:
            yield _event(refusal.body())
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    """Returns a chunk as an event."""
    return b"data: " + dumped(chunk) + b"\n\n"


async def gone(receive: Receive) -> None:
    """Returns when the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(http: Request, work: Callable[[], Any]) -> Any:
    """Returns what `work`, a coroutine function, returns; it is cancelled when the client goes away.

    Raises:
        Refusal: the client went away; nobody reads the message.
    """
    tasks = [asyncio.ensure_future(work()), asyncio.ensure_future(gone(http.receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise Refusal(499, "the client went away")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
