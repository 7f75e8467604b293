"""What a server does under load, when clients go away, when they do not read, and when it is told to stop."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import script_processes
from conftest import ROOT
from serving import PATIENCE, another, error_of, events, loaded_from, serving, until

from lit_gpt.generation.request import Delta, Request
from lit_gpt.serve.flight import Flight

LONG = {"prompt": "the hand", "max_tokens": 150, "ignore_eos": True}
SHORT = {"prompt": "the thing", "max_tokens": 2}


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return loaded_from(checkpoint, prompt_style="alpaca")


@pytest.fixture
def client(loaded):
    with serving(another(loaded)) as client:
        yield client


def stats(client):
    return client.server.metrics.stats()


def slow_steps(client, seconds):
    """Makes each step of the engine take longer, so that what runs is still running when something happens."""
    engine = client.server.thread.engine
    step = engine.step
    engine.step = lambda: (time.sleep(seconds), step())[1]


def post_and_leave(client, body, path="/v1/completions"):
    """Sends a request over a connection that the caller closes."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    s.settimeout(PATIENCE)
    s.connect((client.base_url.host, client.base_url.port))
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    s.sendall(head.encode() + b"\r\n\r\n" + text)
    return s


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/process"])
def test_a_client_that_goes_away_frees_its_rows_at_once(client, stream, path):
    slow_steps(client, 0.02)
    body = LONG | {"n": 2, "stream": stream}
    if "chat" in path:
        body |= {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 150}
    if path == "/process":
        body = {"prompt": "the hand", "max_new_tokens": 300}
    s = post_and_leave(client, body, path)
    until(lambda: stats(client).running == (1 if path == "/process" else 2))
    s.close()
    started = time.monotonic()
    until(lambda: stats(client).running == 0 and client.server.admission.n == 0)
    assert time.monotonic() - started < 3
    assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_beyond_the_queue_requests_are_refused_and_the_others_answered(loaded):
    with serving(another(loaded, max_rows=2), max_rows=2, max_waiting=2) as client:
        slow_steps(client, 0.02)
        found, body = [], LONG | {"max_tokens": 60}
        threads = [
            threading.Thread(target=lambda: found.append(client.post("/v1/completions", json=body))) for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [r for r in found if r.status_code != 200]
        assert len(found) - len(refused) >= 4 and refused
        for response in refused:
            assert error_of(response, 503)["code"] == "full" and int(response.headers["retry-after"]) > 0
        assert error_of(client.post("/v1/completions", json=SHORT | {"n": 5}), 400)
        assert client.post("/v1/completions", json=SHORT | {"n": 4}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_given_up(loaded, stream):
    with serving(another(loaded), max_seconds=0.5) as client:
        slow_steps(client, 0.05)
        if stream:
            with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
                *_, error, done = events(response)
            assert json.loads(error)["error"]["code"] == "timeout" and done == "[DONE]"
        else:
            assert error_of(client.post("/v1/completions", json=LONG), 504)["code"] == "timeout"
        until(lambda: stats(client).running == 0)


def test_a_request_that_the_model_fails_on_ends_no_other_one(client):
    good = client.post("/v1/completions", json=LONG | {"temperature": 0}).json()["choices"][0]["text"]
    slow_steps(client, 0.005)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(client.post("/v1/completions", json=LONG | {"temperature": 0}))
    )
    thread.start()
    until(lambda: stats(client).running == 1)
    for body in (
        {"prompt": [99_999]},
        {"prompt": "\x00" * 9},
        {"prompt": "a" * 9_999},
        SHORT | {"logit_bias": {"9" * 9: 1}},
    ):
        client.post("/v1/completions", json=body)
    thread.join()
    assert found[0].json()["choices"][0]["text"] == good


def test_a_slow_reader_holds_nobody_up(client):
    body = LONG | {"n": 6, "stream": True, "logprobs": 20, "max_tokens": 400}
    slow = post_and_leave(client, body)  # and never reads
    until(lambda: stats(client).running == 6)
    assert client.post("/v1/completions", json=SHORT).status_code == 200
    until(lambda: stats(client).running == 0 and client.server.admission.n == 0)
    assert client.post("/v1/completions", json=SHORT).status_code == 200
    until(lambda: not client.server.serving.service.flights)
    slow.close()


def test_what_waits_for_a_reader_is_bounded_and_who_reads_gets_all(client, monkeypatch):
    monkeypatch.setattr("lit_gpt.serve.flight._MOST_UNREAD", 40_000)
    body = LONG | {"stream": True, "logprobs": 20, "max_tokens": 400}
    with client.stream("POST", "/v1/completions", json=body) as response:
        data = events(response)
    assert data[-1] == "[DONE]" and sum(map(len, data)) > 5 * 40_000
    client.server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)  # the system keeps megabytes else
    before = stats(client).tokens_generated
    slow = post_and_leave(client, body | {"n": 6})  # and does not read for long
    until(lambda: stats(client).running == 6)
    until(lambda: stats(client).running == 0 and client.server.admission.n == 0)
    assert stats(client).tokens_generated - before < 6 * 400 / 2, "broken off long before the texts' end"
    got = b""
    while piece := slow.recv(65_536):
        got += piece
    slow.close()
    assert got.startswith(b"HTTP/1.1 200") and b"[DONE]" not in got


def test_a_reader_that_pauses_gets_all(client):
    body = LONG | {"stream": True, "temperature": 0}
    want = client.post("/v1/completions", json=LONG | {"temperature": 0}).json()["choices"][0]["text"]
    with client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        text = ""
        for n, line in enumerate(lines):
            time.sleep(0.3 if n == 4 else 0)
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    assert text == want


def test_many_requests_at_once_are_each_answered_as_if_alone(client):
    prompts = [[5 + i, 17, 30 + i % 7] for i in range(40)]
    want = {}
    for i, ids in enumerate(prompts):
        body = {"prompt": ids, "max_tokens": 4 + i % 9, "temperature": 1.0 * (i % 2), "seed": i, "ignore_eos": True}
        want[i] = client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    async def all_at_once():
        async with httpx.AsyncClient(base_url=client.base_url, timeout=PATIENCE) as many:

            async def one(i):
                body = {"prompt": prompts[i], "max_tokens": 4 + i % 9, "temperature": 1.0 * (i % 2), "seed": i}
                response = await many.post("/v1/completions", json=body | {"ignore_eos": True})
                return i, response.json()["choices"][0]["text"]

            return dict(await asyncio.gather(*map(one, want)))

    assert asyncio.run(all_at_once()) == want


def start(checkpoint, *flags):
    command = ("scripts/serve.py", "--checkpoint_dir", checkpoint, "--port", 0, *flags)
    process = script_processes.start(*command, cwd=ROOT, stderr=subprocess.PIPE)
    line = process.stdout.readline()
    assert line.startswith("Serving tiny"), line + process.stderr.read()
    return process, line.split()[-1]


def test_sigterm_lets_what_runs_end_and_refuses_the_rest(checkpoint):
    process, url = start(checkpoint, "--drain_seconds", "60")
    found, done = [], []
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:

        def ask():
            with client.stream("POST", "/v1/completions", json=LONG | {"stream": True, "n": 8}) as response:
                for n, data in enumerate(events(response)):
                    found.append(data)
                    if n == 0:
                        done.append(True)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: done)
        process.send_signal(signal.SIGTERM)
        codes = []
        until(lambda: codes.append(client.get("/health").status_code) or codes[-1] == 503)
        late = client.post("/v1/completions", json=SHORT)
        assert error_of(late, 503)["code"] == "closing"
        thread.join()
    assert found[-1] == "[DONE]" and process.wait(PATIENCE) == 0
    finishes = [c["finish_reason"] for data in found[:-1] for c in json.loads(data)["choices"]]
    assert finishes.count("length") == 8
    assert process.stderr.read() == ""


LOADING = """
import sys, time, torch
from lit_gpt.args import ServeArgs
from lit_gpt.serve import run

def load(*args):
    x, end = torch.ones(600, 600), time.monotonic() + 60
    while time.monotonic() < end:
        x @ x

run.load = load
run.serve(run.What("nothing"), ServeArgs(port=int(sys.argv[1])))
"""


def test_sigterm_while_a_model_is_loaded_is_no_crash():
    """The thread that loads is in the middle of torch, which aborts a process whose interpreter ends meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", LOADING, str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def is_loading():
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503

    until(is_loading)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 0


def test_the_servers_of_two_devices_share_a_port_give_the_same_answers_and_end_together(checkpoint, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    process, url = start(checkpoint, "--devices", "2")
    asked = [httpx.post(f"{url}/v1/completions", json=SHORT | {"temperature": 0}, timeout=PATIENCE) for _ in range(12)]
    assert len({response.json()["choices"][0]["text"] for response in asked}) == 1
    answered, name = set(), 'lit_gpt_http_requests_total{path="/v1/completions",status="200"} '
    for _ in range(40):  # each connection goes to either of them
        lines = httpx.get(f"{url}/metrics", timeout=PATIENCE).text.splitlines()
        answered |= {float(line.removeprefix(name)) for line in lines if line.startswith(name)}
    assert (sum(answered) == 12 and len(answered) == 2) or answered == {6.0}
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0 and process.stderr.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_what_runs_longer_than_the_limit_is_told_so(checkpoint):
    process, url = start(checkpoint, "--drain_seconds", "0")
    found, body = [], LONG | {"stream": True, "n": 60}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as response:
        for line in response.iter_lines():
            if not found:
                process.send_signal(signal.SIGINT)
            found.append(line)
    assert any('"closing"' in line for line in found)
    assert process.wait(PATIENCE) == 0


def test_an_address_that_is_taken_is_said_before_anything_is_loaded(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = script_processes.run("scripts/serve.py", "--checkpoint_dir", checkpoint, "--port", port, cwd=ROOT)
    assert process.returncode == 1 and process.stderr.startswith("error: --host 127.0.0.1 --port")


@pytest.mark.parametrize("moment", range(5))
def test_a_stream_that_is_cancelled_ends_even_if_news_come_in_that_moment(moment):
    """`asyncio.wait_for` took no notice of it before Python 3.12, and the connection stayed until the time limit."""

    async def read(flight):
        async for _ in flight.deltas():
            pass

    async def cancelled():
        flight = Flight([Request([1], 9)], streams=True, seconds=60, landed=lambda flight: None)
        reader = asyncio.ensure_future(read(flight))
        await asyncio.sleep(0.01)
        flight.receive(0, Delta("a"))
        for _ in range(moment):
            await asyncio.sleep(0)
        flight.close()
        reader.cancel()
        await asyncio.wait([reader], timeout=1)
        return reader.cancelled()

    assert asyncio.run(cancelled())
