"""A server on the loopback interface, in a thread of the tests' own process, and what its answers are compared with."""

import asyncio
import json
import shutil
import threading
import time
from contextlib import contextmanager

import httpx
import torch

from lit_gpt.args import ServeArgs
from lit_gpt.generation.engine import Engine
from lit_gpt.serve.load import Loaded, What, load
from lit_gpt.serve.run import Server, listen

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% if quick %}quick {% endif %}{% endif %}"
)
PATIENCE = 60
"""Seconds that a test waits for something to happen."""


def with_template(checkpoint, folder):
    """A copy of a checkpoint that has a chat template."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


def loaded_from(folder, **what):
    return load(What(folder, **what), ServeArgs(max_rows=8))


def another(loaded, **limits):
    """The same models in an engine of their own."""
    engine = Engine(loaded.engine.model, loaded.tokenizer, **{"max_rows": 8} | limits)
    return Loaded(engine, loaded.tokenizer, loaded.models, loaded.block_size)


@contextmanager
def serving(loaded, key=None, **args):
    """A client of a server with these models."""
    args = ServeArgs(**{"port": 0, "max_rows": 8, "drain_seconds": 5} | args)
    listening = listen(args)
    server = Server(lambda: loaded, args, key, listening)
    thread = threading.Thread(target=lambda: asyncio.run(server.main()), daemon=True)
    thread.start()
    until(lambda: server.admission.state == "open" or not thread.is_alive())
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as client:
            client.server = server
            yield client
    finally:
        if thread.is_alive():
            server.loop.call_soon_threadsafe(server.handle_exit, 15, None)
        thread.join(PATIENCE)
        listening.close()
    assert not thread.is_alive()
    assert server.admission.n == 0 and server.admission.n_bytes == 0


def until(holds, seconds=PATIENCE):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)


def logprobs_of(model, ids):
    """Log-probabilities of each next token, (T, V), by one plain forward pass."""
    with torch.inference_mode():
        return model(torch.tensor(ids)[None])[0].float().log_softmax(-1)


def greedy_of(model, ids, n):
    """The n most likely next tokens, by plain forward passes."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(logprobs_of(model, ids)[-1].argmax()))
    return ids[len(ids) - n :]


def events(response):
    """The data of server-sent events."""
    return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]


def error_of(response, status):
    """The error in OpenAI's form that a response has to be."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error
