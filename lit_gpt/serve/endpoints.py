"""OpenAI's two endpoints from body to response, whole or as a stream."""

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lit_gpt.generation.request import Delta
from lit_gpt.serve import chat, completions
from lit_gpt.serve.planning import Plan
from lit_gpt.serve.refusals import JSON
from lit_gpt.serve.schemas.openai import ChatBody, CompletionBody
from lit_gpt.serve.schemas.sampling import SamplingFields
from lit_gpt.serve.service import Service
from lit_gpt.serve.sse import EventStream, unless_gone
from lit_gpt.serve.usage import Usage


async def completion_endpoint(service: Service, body: CompletionBody, http: Request) -> Response:
    """Returns the response to a request of /v1/completions."""

    async def work() -> Response:
        made = await service.in_thread(lambda: completions.plan(service, body))
        flight = await service.begin(made.requests, streams=bool(body.stream))
        if body.stream:
            stream = _TextStream(service, body, made)
            return EventStream(flight, stream.parts, stream.last)
        try:
            answers = await flight.answers()
        finally:
            flight.close()
        return JSON(await service.in_thread(lambda: completions.dumped_whole(service, body, made, answers)))

    return await unless_gone(http, work)


async def chat_endpoint(service: Service, body: ChatBody, http: Request) -> Response:
    """Returns the response to a request of /v1/chat/completions."""

    async def work() -> Response:
        made = await service.in_thread(lambda: chat.plan(service, body))
        flight = await service.begin(made.requests, streams=bool(body.stream))
        if body.stream:
            stream = _ChatStream(service, body, made)
            return EventStream(flight, stream.parts, stream.last)
        try:
            answers = await flight.answers()
        finally:
            flight.close()
        return JSON(await service.in_thread(lambda: chat.dumped_whole(service, body, made, answers)))

    return await unless_gone(http, work)


class _Stream:
    """The chunks of an answer that is streamed."""

    def __init__(self, body: SamplingFields, made: Plan, head: dict[str, Any]) -> None:
        self.made, self.head, self.usage = made, head, Usage()
        self.with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        for prompt in made.prompts:
            self.usage.add(prompt.ids, [])

    def count(self, number: int, delta: Delta) -> None:
        """Counts a delta of a text, of which what was in the cache counts for the first one of a prompt.

        Args:
            number: number of the text among those of its prompt.
        """
        self.usage.add((), [delta if number == 0 else delta._replace(n_cached=0)])

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns a chunk with these choices."""
        return self.head | {"choices": choices} | ({"usage": None} if self.with_usage else {})

    def last(self) -> Iterator[dict[str, Any]]:
        """Yields the chunk that follows all deltas, if the request wants one."""
        if self.with_usage:
            yield self.head | {"choices": [], "usage": self.usage.shown()}


class _TextStream(_Stream):
    """The chunks of /v1/completions."""

    def __init__(self, service: Service, body: CompletionBody, made: Plan) -> None:
        super().__init__(body, made, completions.head(made))
        self.body = body
        n = body.n or 1
        self.choices = [
            completions.Choice(service, body, made=made, prompt=made.prompts[i // n], index=i)
            for i in range(len(made.requests))
        ]

    def parts(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yields the chunk of a delta, unless there is nothing in it for a client."""
        self.count(index % (self.body.n or 1), delta)
        choice = self.choices[index].part(delta)
        if choice["text"] or choice["logprobs"] or choice["finish_reason"] or "token_ids" in choice:
            yield self.chunk([choice])


class _ChatStream(_Stream):
    """The chunks of /v1/chat/completions; the first one of each answer has its role."""

    def __init__(self, service: Service, body: ChatBody, made: Plan) -> None:
        super().__init__(body, made, chat.head(made, "chat.completion.chunk"))
        self.service, self.body = service, body
        self.choices = [chat.Choice(service, body, made, i) for i in range(len(made.requests))]
        self.begun: set[int] = set()

    def parts(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yields the chunks of a delta."""
        self.count(index, delta)
        if index not in self.begun:
            self.begun.add(index)
            first = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
            about = chat.about_prompt(self.service, self.body, self.made, delta) if index == 0 else {}
            yield self.chunk([first | {"finish_reason": None}]) | about
        choice = self.choices[index].part(delta, "delta")
        if choice["delta"]["content"] or choice["logprobs"] or choice["finish_reason"] or "token_ids" in choice:
            yield self.chunk([choice])
