"""What the server refuses, and how it says so: OpenAI's form of errors, for every endpoint and status."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 500: "server_error"}
_TYPES |= dict.fromkeys((408, 504), "timeout_error") | {503: "overloaded_error"}
_MESSAGE = 2_000
"""Most characters of a message."""
_FORM = re.compile(r"(str|constrained-str|function-.*|.*\[.*)$")
"""Names that pydantic gives to the forms that a field may have."""


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
    """Returns the refusal of a body that does not fit its schema, by the error that says most.

    Where a field has several forms there are errors for each of them. The one that is not about the form, or else the
    innermost one, belongs to the form that was meant.
    """
    best = min(errors, key=lambda e: (e["type"].endswith("_type"), -len(_place(e))), default=None)
    if best is None:
        return Refusal(400, "the request does not fit its schema")
    place = _place(best)
    if best["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {best['ctx']['error']}", code="invalid_json")
    if best["type"] == "missing" and not place:
        return Refusal(400, "the body is empty; send a JSON object", code="invalid_json")
    where = ".".join(place)
    return Refusal(400, f"{where}: {best['msg']}" if where else best["msg"], param=place[0] if place else None)


def _place(error: Any) -> list[str]:
    """Returns where in the body an error is, without pydantic's names of forms, such as `list[constrained-int]`."""
    named = [str(part)[:100] for part in error["loc"] if part != "body"]
    return named[:1] + [part for part in named[1:] if not _FORM.match(part)]


def unreadable(cause: BaseException | None) -> Refusal:
    """Returns the refusal of a body that no JSON can be read from, by what the reader raised."""
    reasons = {UnicodeDecodeError: "it is not in UTF-8", RecursionError: "it is nested too deeply"}
    reason = reasons.get(type(cause), "a number in it has too many digits" if isinstance(cause, ValueError) else "")
    return Refusal(400, f"the body cannot be read as JSON{reason and ': '}{reason}", code="invalid_json")
