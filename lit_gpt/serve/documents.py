"""What /openapi.json says of the endpoints."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from lit_gpt.serve.schemas.sampling import ErrorBody

_MEANINGS = {
    400: "The request does not fit its schema, the model's context, or what this server can do.",
    401: "The server wants an API key.",
    403: "The request comes from a page of another site, or calls the server by another name.",
    404: "There is no such model.",
    408: "The body did not come.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    500: "The server or the model failed.",
    503: "The server is loading, full, or shutting down.",
    504: "The request took too long.",
}
_ALWAYS = (401, 403)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the errors of an endpoint for its documentation; all of them if none is named."""
    chosen = sorted({*statuses, *_ALWAYS}) if statuses else _MEANINGS
    return {status: {"model": ErrorBody, "description": _MEANINGS[status]} for status in chosen}


def documented(app: FastAPI, names: Sequence[str] | None) -> dict[str, Any]:
    """Returns the document, made once; a body that does not fit gets 400 here, so FastAPI's own 422 is left out.

    Args:
        names: the models' names, which paths may have; None if they are not known yet.
    """
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for parameter in operation.get("parameters", ()) if names else ():
                    if parameter["in"] == "path":
                        parameter["schema"]["enum"] = list(names or ())
        schemas = found["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{}, {"key": []}]
        if names is None:
            return found
        app.openapi_schema = found
    return app.openapi_schema
