"""What stands before all endpoints: who may call, from which pages, and how large a request may be.

A server on the loopback interface can be called by every program of this machine, and so by every web page that its
user opens. A page of another site may send requests, with or without reading the answers, and by giving its own name a
local address (DNS rebinding) it even becomes the same site. So a request is refused that names a host which is not this
machine, or that comes from a page of another origin; no origin is allowed but those that the user names.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_gpt.serve.admission import Admission
from lit_gpt.serve.metrics import Metrics
from lit_gpt.serve.refusals import Refusal

_OPEN = ("/", "/health")
_OPEN_BELOW = "/page/"
"""Paths that need no key: the page, which asks for one, and whether the server is there."""
_BODY_SECONDS, _BODY_PART = 30, 65_536
"""Seconds that a client may take for so many bytes of a body, and for the rest of it."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """An application that refuses what must not reach `app`.

    Args:
        hosts: names that the Host header may have; None for any.
        origins: origins of pages that may call, besides that of the server itself.
        api_key: key that requests have to carry; None for none.
        most_bytes: most bytes of a body.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        *,
        metrics: Metrics,
        hosts: Collection[str] | None,
        origins: Collection[str],
        api_key: str | None,
        most_bytes: int,
    ) -> None:
        self.app, self.admission, self.metrics = app, admission, metrics
        self.hosts, self.origins = hosts, frozenset(origins)
        self.key = None if api_key is None else _digest(api_key.encode())
        self.most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(scope["path"], message["status"])
                _protect(MutableHeaders(scope=message), headers.get("origin"), self.origins)
            await send(message)

        try:
            self._check(scope, headers)
        except Refusal as refusal:
            await refusal.response()(scope, receive, guarded)
            return
        if scope["method"] == "OPTIONS" and headers.get("origin") in self.origins:
            await _preflight(guarded)
            return
        if scope["method"] == "HEAD":  # uvicorn leaves the body of the answer out
            scope = {**scope, "method": "GET"}
        body = _Body(receive, self.admission, self.most_bytes)
        try:
            await self.app(scope, body.receive, guarded)
        finally:
            self.admission.give_bytes(body.n)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Checks all that stands in a request's head; raises Refusal."""
        host = headers.get("host", "")
        is_named = "host" in headers  # programs that speak HTTP/1.0 may leave it out, browsers never do
        if self.hosts is not None and is_named and _name_of(host) not in self.hosts:
            raise Refusal(403, f"this server is not called {host[:100]!r}; call it localhost or 127.0.0.1", code="host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins and not _is_same(origin, host):
            raise Refusal(
                403, f"pages of {origin[:100]} may not call this server; --allow_origins names those that may",
                code="origin",
            )  # fmt: skip
        path = scope["path"]
        is_open = path in _OPEN or path.startswith(_OPEN_BELOW) or scope["method"] == "OPTIONS"
        if self.key is not None and not is_open and not self._has_key(headers):
            raise Refusal(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                          code="invalid_api_key")  # fmt: skip
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json" and not kind.endswith("+json"):
            raise Refusal(415, "send the body as Content-Type: application/json", code="content_type")
        if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise Refusal(415, f"send the body as it is, not as {coding[:40]}", code="content_encoding")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self.most_bytes:
            raise _too_large(self.most_bytes)

    def _has_key(self, headers: Headers) -> bool:
        """Returns whether a request carries the key; takes the same time whatever it carries."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        assert self.key is not None
        return hmac.compare_digest(_digest(given.strip().encode("latin-1", "replace")), self.key) and (
            kind.lower() == "bearer"
        )


def _digest(key: bytes) -> bytes:
    """Returns a hash of a key, whose length says nothing of the key's."""
    return hashlib.sha256(key).digest()


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body has more than {most:,} bytes", code="body_too_large")


def _name_of(host: str) -> str:
    """Returns the name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_same(origin: str, host: str) -> bool:
    """Returns whether a page's origin is the host that it calls; a proxy may have taken the TLS away."""
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest.lower() == host.lower()


def _protect(headers: MutableHeaders, origin: str | None, origins: Collection[str]) -> None:
    """Adds headers to a response: its type is what it says, and pages that may call may read it."""
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Cache-Control", "no-store")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    if origin in origins:
        headers["Access-Control-Allow-Origin"] = origin or ""
        headers["Vary"] = "Origin"
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"


async def _preflight(send: Send) -> None:
    """Answers the question of a browser whether a page that is allowed may send a request."""
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class _Body:
    """The body of a request as it comes, counted and within limits."""

    def __init__(self, receive: Receive, admission: Admission, most: int) -> None:
        self._receive, self.admission, self.most = receive, admission, most
        self.n, self.is_whole = 0, False
        self._deadline, self._goal = time.monotonic() + _BODY_SECONDS, _BODY_PART

    async def receive(self) -> Message:
        """Returns the next message; raises HTTPException if the body is too large or comes too slowly."""
        if self.is_whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, self._deadline - time.monotonic()))
        except (asyncio.TimeoutError, TimeoutError):
            message = (
                f"the body comes too slowly: {_BODY_PART:,} bytes of it, or the rest, took {_BODY_SECONDS} seconds"
            )
            raise HTTPException(408, message) from None
        if message["type"] == "http.request":
            n = len(message.get("body", b""))
            if self.n + n > self.most:
                refusal = _too_large(self.most)
                raise HTTPException(refusal.status, refusal.message)
            try:
                self.admission.take_bytes(n)
            except Refusal as refusal:
                raise HTTPException(refusal.status, refusal.message, refusal.headers) from None
            self.n += n
            if self.n >= self._goal:
                self._deadline, self._goal = time.monotonic() + _BODY_SECONDS, self.n + _BODY_PART
            self.is_whole = not message.get("more_body", False)
        return message
