"""The page of the server, at `/`: files of the folder page/, under a policy that lets nothing else into it."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response

from lit_gpt.serve.refusals import Refusal

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
"""The files by name: what a client sends never becomes a path."""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_pages(app: FastAPI) -> None:
    """Adds the page and its files to the application."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return _file(name)


def _file(name: str) -> Response:
    """Returns a file of the page; raises Refusal if there is none of that name."""
    path = _FILES.get(name)
    if path is None:
        raise Refusal(404, "there is no such file of the page")
    return FileResponse(path, media_type=f"{_TYPES[path.suffix]}; charset=utf-8", headers=_HEADERS)
