"""What the endpoints share once the model is loaded: models by name, threads that tokenize, the way to the engine."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lit_gpt.generation.request import Delta, Request
from lit_gpt.serve.admission import Admission
from lit_gpt.serve.flight import Flight, Post
from lit_gpt.serve.metrics import Metrics
from lit_gpt.serve.models import Registry
from lit_gpt.serve.pieces import Pieces
from lit_gpt.serve.refusals import Refusal
from lit_gpt.tokenizer import Tokenizer

_T = TypeVar("_T")
_THREADS = 8
"""Threads that tokenize and write answers; the tokenizer itself works on one text at a time."""


class _Engine(Protocol):
    """What answers: an `EngineThread`."""

    def submit(self, request: Request, deliver: Callable[[Delta], None]) -> int: ...

    def cancel(self, ticket: int) -> None: ...


@dataclass(frozen=True)
class Limits:
    """What a request may take."""

    seconds: float
    """Seconds after which a request is given up."""
    max_new_tokens: int
    """Most tokens of an answer to a request that names no number."""


class Service:
    """A loaded model, ready to answer.

    Args:
        engine: the thread that runs the model.
        block_size: most tokens of a text and what follows it.
    """

    def __init__(
        self,
        engine: _Engine,
        tokenizer: Tokenizer,
        models: Registry,
        *,
        block_size: int,
        limits: Limits,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self.engine, self.tokenizer, self.models = engine, tokenizer, models
        self.block_size, self.limits, self.admission, self.metrics = block_size, limits, admission, metrics
        self.pieces = Pieces(tokenizer)
        self.started = int(time.time())
        self.flights: set[Flight] = set()
        self._threads = ThreadPoolExecutor(_THREADS, "serve")
        self._post: Post | None = None

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """Returns what `work` returns, which runs on another thread so that the event loop never waits for it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def begin(self, requests: Sequence[Request], streams: bool = False) -> Flight:
        """Hands requests to the engine; whoever calls has to close what is returned.

        Raises:
            Refusal: there is no room for them.
            UserError: the engine refuses one of them.
        """
        self.admission.enter(len(requests), sum(map(_scores_of, requests)))
        flight = Flight(requests, streams=streams, seconds=self.limits.seconds, landed=self._land)
        flight.cancel = self.engine.cancel
        self.flights.add(flight)
        self._post = self._post or Post(asyncio.get_running_loop())
        post = self._post
        submitted = asyncio.ensure_future(self.in_thread(lambda: flight.submit(self.engine.submit, post)))
        try:
            await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(lambda done: (done.exception(), flight.settle()))
            raise
        except BaseException:
            flight.settle()
            raise
        return flight

    def _land(self, flight: Flight) -> None:
        self.flights.discard(flight)
        self.admission.leave(len(flight.requests), sum(map(_scores_of, flight.requests)))
        self.metrics.landed(flight)

    async def close(self, seconds: float) -> None:
        """Takes no more requests, waits for those that are being answered, and ends those that take longer."""
        self.admission.state = "closing"
        try:
            await asyncio.wait_for(self.admission.left.wait(), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            for flight in list(self.flights):
                flight.fail(Refusal(503, "the server is shutting down", code="closing", retry_after=30))
                flight.close()
            await asyncio.sleep(0.2)  # for the clients to be told


def _scores_of(request: Request) -> int:
    """Returns how many log-probabilities the answer to a request may have."""
    new = 0 if request.logprobs is None else (1 + request.logprobs) * request.max_new_tokens
    return new + (0 if request.prompt_logprobs is None else (1 + request.prompt_logprobs) * len(request.ids))
