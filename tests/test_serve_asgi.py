"""The server as an application for other programs: it answers once it is loaded, or says why not in one line."""

import asyncio
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from lit_gpt.args import ServeArgs
from lit_gpt.serve.asgi import application
from lit_gpt.serve.load import What


def started(app):
    """What an application sends when it is asked to start."""
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    async def start():
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        except Exception as e:
            sent.append(e)

    asyncio.run(start())
    return sent


def test_it_is_ready_when_it_has_started_and_is_guarded_as_the_server_is(checkpoint):
    app = application(What(checkpoint), ServeArgs(max_rows=4, max_body_mb=0.01))
    assert isinstance(app, FastAPI)
    with TestClient(app) as client:
        found = client.post("/process", json={"prompt": "The capital of France is "}).json()
        assert found.keys() == {"text", "tokens", "logprob", "request_time"} and found["tokens"]
        assert client.get("/health").status_code == 200
        assert client.post("/process", content="{}").status_code == 415
        assert client.post("/process", json={"prompt": "a" * 20_000}).status_code == 413
        thread = client.app.state.serving.service.engine._thread
    assert not thread.is_alive()


def test_a_model_that_is_not_there_ends_the_start_in_one_line(tmp_path):
    sent = started(application(What(Path(tmp_path / "nowhere"))))
    (failed,) = [m for m in sent if isinstance(m, dict)]
    assert failed["type"] == "lifespan.startup.failed"
    assert failed["message"].startswith("error: there is no folder") and "\n" not in failed["message"]
