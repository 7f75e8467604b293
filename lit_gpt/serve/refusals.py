"""What the server refuses, and how it says so: OpenAI's form of errors, for every endpoint and status."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 500: "server_error"}
_TYPES |= dict.fromkeys((408, 504), "timeout_error") | {503: "overloaded_error"}
_MESSAGE = 2_000
"""Most characters of a message."""


class Refusal(Exception):
    """A request that is not answered, with the status and the message that the client gets.

    Args:
        param: name of the field that is at fault.
        code: a word that programs can tell the error by.
        retry_after: seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message[:_MESSAGE], param, code
        self.headers: dict[str, str] = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """Returns the error in OpenAI's form."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Returns the error as a response."""
        return JSON(self.body(), self.status, self.headers)


class JSON(Response):
    """A response of JSON in ASCII, so that a lone half of a surrogate pair, which UTF-8 cannot write, does no harm."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else dumped(content)


def dumped(value: Any) -> bytes:
    """Returns a value as JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def invalid(errors: Sequence[Any]) -> Refusal:
    """Returns the refusal of a body that does not fit its schema, by the first errors that pydantic found."""
    first = min(errors, key=lambda e: len(e["loc"]), default=None)
    if first is None:
        return Refusal(400, "the request does not fit its schema")
    place = [str(part)[:100] for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "missing" and not place:
        return Refusal(400, "the body is empty; send a JSON object", code="invalid_json")
    where = ".".join(place)
    return Refusal(400, f"{where}: {first['msg']}" if where else first["msg"], param=place[0] if place else None)
