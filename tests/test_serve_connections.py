"""Clients that send slowly, read nothing, break off, or speak no HTTP: each is left after a while, and harms nobody."""

import json
import resource
import socket
import time

import pytest
from serving import another, error_of, loaded_from, serving, until

from lit_gpt.serve import connection, guard, run

ASK = {"prompt": "the", "max_tokens": 2}
BODY = json.dumps(ASK).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return loaded_from(checkpoint)


@pytest.fixture
def client(loaded, monkeypatch):
    """A client of a server with little patience."""
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connection, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.5)
    monkeypatch.setattr(guard, "_BODY_PART", 10)
    with serving(another(loaded)) as client:
        yield client
        assert client.post("/v1/completions", json=ASK).status_code == 200


def connected(client, seconds=10):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=seconds)


def rest_of(s, drip=b"", seconds=10):
    """What comes over a connection until it is closed, while `drip` is sent again and again."""
    found, end = b"", time.monotonic() + seconds
    s.settimeout(0.1)
    while time.monotonic() < end:
        try:
            part = s.recv(65_536)
            if not part:
                return found
            found += part
        except TimeoutError:
            if drip:
                s.sendall(drip)
        except ConnectionError:
            return found
    raise AssertionError(f"the connection is still there; {found!r} came over it")


def answers(data):
    """(status, body) of each answer in what came over a connection."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        n = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
        found.append((int(lines[0].split()[1]), data[:n]))
        data = data[n:]
    return found


@pytest.mark.parametrize("start, drip", [(b"", b""), (b"GET / HTTP/1.1\r\nHo", b"o"), (GET[:-2], b"X-A: b\r\n")])
def test_a_head_that_does_not_end_is_not_waited_for(client, start, drip):
    with connected(client) as s:
        s.sendall(start)
        assert rest_of(s, drip) == b""


def test_the_next_head_over_a_connection_may_come_late_but_not_slowly(client):
    with connected(client) as s:
        s.sendall(GET)
        time.sleep(1)  # an idle connection is kept for longer than a head may take
        s.sendall(GET[:9])
        time.sleep(0.1)
        s.sendall(GET[9:] + GET[:9])
        assert [status for status, _ in answers(rest_of(s, b"x"))] == [200, 200]


def test_a_request_that_comes_as_an_idle_connection_ends_is_answered(loaded, monkeypatch):
    """The loop is busy when the idle time ends, and the request comes meanwhile: it was reset unread."""
    monkeypatch.setattr(run, "_IDLE_SECONDS", 0.5)
    with serving(another(loaded)) as client, connected(client) as s:
        loop = client.server.loop

        def be_busy():
            loop.call_later(0.4, time.sleep, 0.2)  # when it ends, the next one and the end of the idle time are due
            loop.call_later(0.45, time.sleep, 0.3)

        s.sendall(GET)
        assert b" 200 " in s.recv(65_536)
        loop.call_soon_threadsafe(be_busy)
        time.sleep(0.75)
        s.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert [status for status, _ in answers(rest_of(s))] == [200]


@pytest.mark.parametrize(
    "kind, drip", [(b"Content-Length: 500\r\n\r\n", b" "), (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")]
)
def test_a_body_that_comes_too_slowly_is_refused_and_its_rest_not_waited_for(client, kind, drip):
    with connected(client) as s:
        s.sendall(HEAD + kind)
        ((status, body),) = answers(rest_of(s, drip))
    assert status == 408 and b"too slowly" in body
    until(lambda: client.server.admission.n_bytes == 0)


def test_the_rest_of_a_body_that_is_refused_is_taken_and_the_connection_kept(client):
    with connected(client) as s:
        s.sendall(HEAD.replace(b"json", b"xml") + b"Content-Length: 9\r\n\r\n")
        time.sleep(0.2)
        s.sendall(b"some")
        time.sleep(0.2)
        s.sendall(b"thing")
        time.sleep(0.8)
        s.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert [status for status, _ in answers(rest_of(s))] == [415, 200]


def test_a_body_that_comes_steadily_may_take_its_time(client):
    with connected(client) as s:
        s.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (len(BODY) + 60))
        for _ in range(6):
            s.sendall(b" " * 10)
            time.sleep(0.2)
        s.sendall(BODY)
        assert [status for status, _ in answers(rest_of(s))] == [200]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_reads_is_not_kept(client, stream):
    client.server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    body = json.dumps(
        {"prompt": [5], "max_tokens": 100, "n": 8, "logprobs": 20, "ignore_eos": True, "stream": stream}
    ).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        s.connect((client.base_url.host, client.base_url.port))
        s.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: client.server.metrics.stats().tokens_generated > 0)
        state = client.server.server_state
        until(lambda: not state.connections and not state.tasks, seconds=10)


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02 nonsense\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 66_000,
        HEAD.replace(b"json", b"xml") + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY + b"\x00 more\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_the_form_of_errors(client, caplog, text):
    with connected(client) as s:
        s.sendall(text)
        *before, (status, body) = answers(rest_of(s))
    assert [status for status, _ in before] in ([], [200]) and status == 400
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_body_that_goes_wrong_after_its_refusal_is_no_failure_of_the_server(client, caplog):
    with connected(client) as s:
        s.sendall(HEAD.replace(b"json", b"xml") + b"Transfer-Encoding: chunked\r\n\r\n")
        time.sleep(0.2)
        s.sendall(b"zz\r\n")
        assert [status for status, _ in answers(rest_of(s))] == [415]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_requests_one_after_the_other_and_in_parts_are_answered(client):
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    with connected(client) as s:
        s.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + GET)
        s.sendall(HEAD + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        time.sleep(0.2)
        s.sendall(BODY)
        found = rest_of(s).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert [status for status, _ in answers(found)] == [200, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_clients_of_http_1_0_are_answered_and_closed(client, stream):
    body = json.dumps(ASK | {"stream": stream}).encode()
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
    with connected(client) as s:
        s.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        found = rest_of(s)
    with connected(client) as s:
        s.sendall(b"GET /health HTTP/1.0\r\n\r\n")  # no host is named
        assert [status for status, _ in answers(rest_of(s))] == [200]
    assert b" 200 " in found.partition(b"\r\n")[0] and b"chunked" not in found
    assert found.endswith(b"data: [DONE]\n\n" if stream else b"}")


@pytest.mark.parametrize("path", ["/health", "/", "/metrics", "/v1/models", "/openapi.json"])
def test_head_is_answered_as_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert error_of(client.get("/v1/completions"), 405) and client.head("/v1/completions").status_code == 405


def test_the_server_takes_as_many_connections_as_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        run._allow_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_closes_its_side_counts_as_gone(client):
    with connected(client) as s:
        body = json.dumps({"prompt": [5], "max_tokens": 150, "ignore_eos": True, "n": 8}).encode()
        s.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        s.shutdown(socket.SHUT_WR)
        assert rest_of(s) == b""
    until(lambda: client.server.admission.n == 0 and client.server.metrics.stats().running == 0)


def test_clients_that_neither_send_nor_read_do_not_hold_up_the_end(loaded, monkeypatch, caplog):
    monkeypatch.setattr(run, "_LAST_SECONDS", 0.5)
    with serving(another(loaded)) as client:
        client.server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        body = json.dumps(
            {"prompt": [5], "max_tokens": 100, "n": 8, "logprobs": 20, "ignore_eos": True, "stream": True}
        ).encode()
        half, silent = connected(client), socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        silent.connect((client.base_url.host, client.base_url.port))
        half.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        silent.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: client.server.metrics.stats().tokens_generated >= 800)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    half.close()
    silent.close()
