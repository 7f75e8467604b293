"""The application: which path is answered by what, with a true /openapi.json."""

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lit_gpt import __version__
from lit_gpt.errors import UserError
from lit_gpt.serve import helm, tokenizing
from lit_gpt.serve.admission import Admission
from lit_gpt.serve.documents import documented, errors
from lit_gpt.serve.endpoints import chat_endpoint, completion_endpoint
from lit_gpt.serve.metrics import Metrics
from lit_gpt.serve.pages import add_pages
from lit_gpt.serve.refusals import JSON, Refusal, invalid, unreadable
from lit_gpt.serve.schemas.helm import ProcessBody, Processed
from lit_gpt.serve.schemas.openai import ChatBody, ChatCompletion, Completion, CompletionBody, Model, Models
from lit_gpt.serve.schemas.tokens import (
    Health,
    HelmText,
    HelmTokens,
    IdsBody,
    TokenizeBody,
    TokenizerInfo,
    VllmText,
    VllmTokens,
)
from lit_gpt.serve.service import Service
from lit_gpt.serve.sse import unless_gone


class State:
    """What the endpoints look at: the service, once the model is loaded, and who is let in."""

    def __init__(self, admission: Admission, metrics: Metrics) -> None:
        self.admission, self.metrics = admission, metrics
        self.service: Service | None = None

    def ready(self) -> Service:
        """Returns the service; raises Refusal (503) while it is not there or takes nothing."""
        self.admission.require_open()
        assert self.service is not None
        return self.service


def make_app(state: State) -> FastAPI:
    """Returns the application; it answers 503 until `state` has a service."""
    app = FastAPI(title="lit-gpt", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.serving = state
    _add_errors(app)
    _add_status(app, state)
    _add_openai(app, state)
    _add_helm(app, state)
    _add_tokens(app, state)
    add_pages(app)
    app.openapi = lambda: documented(app, None if state.service is None else list(state.service.models.by_name))
    return app


def _add_errors(app: FastAPI) -> None:
    """Makes every error OpenAI's form of one."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, e: Refusal) -> Response:
        return e.response()

    @app.exception_handler(UserError)
    async def wrong(request: Request, e: UserError) -> Response:
        return Refusal(400, str(e)).response()

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, e: RequestValidationError) -> Response:
        return invalid(e.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, e: HTTPException) -> Response:
        if e.status_code == 400 and e.__cause__ is not None:  # FastAPI could not read the body
            return unreadable(e.__cause__).response()
        detail = {404: f"there is no {request.url.path[:200]}", 405: f"{request.method} is not for this path"}
        refusal = Refusal(e.status_code, detail.get(e.status_code, str(e.detail)))
        refusal.headers |= e.headers or {}
        return refusal.response()

    @app.exception_handler(Exception)
    async def failed(request: Request, e: Exception) -> Response:
        return Refusal(500, f"the server failed ({type(e).__name__}); its log has the details").response()


def _add_status(app: FastAPI, state: State) -> None:
    @app.get("/health", response_model=Health, responses=errors(503))
    async def health() -> Response:
        """Returns 200 as soon as requests are answered, and 503 before and at the end."""
        state.ready()
        return JSON({"status": "ok"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}} | errors(401))
    async def metrics() -> Response:
        """Returns figures for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_openai(app: FastAPI, state: State) -> None:
    @app.get("/v1/models", response_model=Models, responses=errors(503))
    async def list_models() -> Response:
        """Returns the models that requests can name; the first one answers those that name none."""
        service = state.ready()
        return JSON({"object": "list", "data": [_shown(service, name) for name in service.models.by_name]})

    @app.get("/v1/models/{name:path}", response_model=Model, responses=errors(404, 503))
    async def one_model(name: str) -> Response:
        """Returns one of the models."""
        service = state.ready()
        return JSON(_shown(service, service.models.exactly(name).name))

    streams: Any = {200: {"content": {"text/event-stream": {}}}}

    @app.post("/v1/completions", response_model=Completion, responses=streams | errors())
    async def complete(body: CompletionBody, http: Request) -> Response:
        """Continues texts, or scores them (`echo` with `max_tokens` 0)."""
        return await completion_endpoint(state.ready(), body, http)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=streams | errors())
    async def answer(body: ChatBody, http: Request) -> Response:
        """Answers a conversation; if the assistant has the last turn, that is continued."""
        return await chat_endpoint(state.ready(), body, http)


def _shown(service: Service, name: str) -> dict[str, Any]:
    """Returns a model as OpenAI's list has it."""
    model = service.models.exactly(name)
    return {
        "id": model.name,
        "object": "model",
        "created": service.started,
        "owned_by": "lit-gpt",
        "root": str(model.path),
        "parent": model.parent,
        "max_model_len": service.block_size,
    }


def _add_helm(app: FastAPI, state: State) -> None:
    async def processed(body: ProcessBody, http: Request, model: str | None) -> Response:
        service, started = state.ready(), time.monotonic()

        async def work() -> Response:
            served = service.models.find(model) if model is None else service.models.exactly(model)
            made = await service.in_thread(lambda: helm.plan(service, body, served))
            flight = await service.begin(made.requests)
            try:
                answers = await flight.answers()
            finally:
                flight.close()
            shown = await service.in_thread(lambda: helm.answered(service, body, made, answers[0], started))
            return JSON(shown)

        return await unless_gone(http, work)

    @app.post("/process", response_model=Processed, responses=errors())
    async def process(body: ProcessBody, http: Request) -> Response:
        """Continues or scores a text for HELM."""
        return await processed(body, http, None)

    @app.post("/runs/{name:path}/process", response_model=Processed, responses=errors())
    async def process_by_run(name: str, body: ProcessBody, http: Request) -> Response:
        """Does what `/process` does with a run: HELM names no model, but its base URL can."""
        return await processed(body, http, name)

    @app.post("/runs/{name:path}/decode", response_model=HelmText, responses=errors())
    async def decode_by_run(name: str, body: IdsBody) -> Response:
        """Does what `/decode` does; all runs share the base's tokenizer."""
        state.ready().models.exactly(name)
        return await decode(body)

    @app.post("/decode", response_model=HelmText, responses=errors())
    async def decode(body: IdsBody) -> Response:
        """Returns the text of tokens for HELM; tokenized again it has at most as many tokens."""
        service, started = state.ready(), time.monotonic()

        def work() -> dict[str, Any]:
            tokenizing.require_tokens(service, body.tokens)
            return {"text": helm.text_of(service, body.tokens), "request_time": time.monotonic() - started}

        return JSON(await service.in_thread(work))


def _add_tokens(app: FastAPI, state: State) -> None:
    @app.get("/tokenizer_info", response_model=TokenizerInfo, responses=errors(503))
    async def tokenizer_info() -> Response:
        """Returns what a client has to know to count tokens and to write conversations itself."""
        service = state.ready()
        return JSON(await service.in_thread(lambda: tokenizing.tokenizer_info(service)))

    @app.post("/tokenize", response_model=HelmTokens | VllmTokens, responses=errors())
    async def tokenize(body: TokenizeBody) -> Response:
        """Returns the tokens of a text or of a conversation."""
        service = state.ready()
        return JSON(await service.in_thread(lambda: tokenizing.tokenized(service, body)))

    @app.post("/runs/{name:path}/tokenize", response_model=HelmTokens | VllmTokens, responses=errors())
    async def tokenize_by_run(name: str, body: TokenizeBody) -> Response:
        """Does what `/tokenize` does; all runs share the base's tokenizer."""
        served = state.ready().models.exactly(name)
        return await tokenize(body.model_copy(update={"model": served.name}))

    @app.post("/detokenize", response_model=VllmText, responses=errors())
    async def detokenize(body: IdsBody) -> Response:
        """Returns the text of tokens, special ones written out."""
        service = state.ready()

        def work() -> dict[str, Any]:
            tokenizing.require_tokens(service, body.tokens)
            return {"prompt": tokenizing.written_out(service, body.tokens)}

        return JSON(await service.in_thread(work))
