"""The server as an application that any ASGI server starts, such as `uvicorn main:app`.

The port is open once the model is loaded and has run once, which is how the samples of the NeurIPS 2023 challenge
behave: whoever asks before is refused the connection, and asks again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_gpt.args import ServeArgs
from lit_gpt.errors import UserError
from lit_gpt.serve.app import make_app
from lit_gpt.serve.doors import Doors
from lit_gpt.serve.guard import Guard
from lit_gpt.serve.load import What, load


def application(what: What, args: ServeArgs = ServeArgs()) -> FastAPI:
    """Returns an application that loads models when it is started, and drains when it is told to stop.

    A start that fails by a mistake of the user says so in one line.

    Args:
        args: the server's arguments, but for host and port, which are those of whoever starts the application.
    """
    doors, mistakes = Doors(args), list[str]()
    app = make_app(doors.state)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            loaded = await asyncio.to_thread(load, what, args)
        except UserError as e:
            mistakes.append(f"error: {e}")
            raise
        service = doors.open(loaded)
        print(f"Serving {', '.join(loaded.models.by_name)}", flush=True)
        try:
            yield
            await service.close(args.drain_seconds)
        finally:
            doors.stop()

    app.router.lifespan_context = lifespan
    app.add_middleware(Guard, **doors.guard(hosts=None))
    app.add_middleware(_OneLine, mistakes=mistakes)
    return app


class _OneLine:
    """An application whose failed start is told in one line, if a mistake was noted, and else with its traceback."""

    def __init__(self, app: ASGIApp, mistakes: list[str]) -> None:
        self.app, self.mistakes = app, mistakes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self.mistakes:
                message = {**message, "message": self.mistakes[-1]}
            await send(message)

        await self.app(scope, receive, told if scope["type"] == "lifespan" else send)
