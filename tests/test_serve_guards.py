"""Who may call a server, what reaches it, and what its document and its figures say."""

import json
import socket

import pytest
from serving import another, error_of, loaded_from, serving, until

ASK = {"prompt": "the", "max_tokens": 2}


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return loaded_from(checkpoint)


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded, max_body_mb=0.1, allow_origins=("http://good.example",)) as client:
        yield client


@pytest.fixture(scope="module")
def locked(loaded):
    with serving(another(loaded), key="s3cret") as client:
        yield client


def raw(client, text, wait=10):
    """What a server answers to bytes as they are."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=wait) as s:
        s.sendall(text)
        found = b""
        while part := s.recv(65_536):
            found += part
        return found


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.0.0.1:8000", "", "[", "127.0.0.1.nip.io"]
)
def test_another_name_for_the_server_is_refused(client, host):
    assert error_of(client.get("/v1/models", headers={"Host": host}), 403)["code"] == "host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LOCALHOST:80", "[::1]:80", "localhost.:80"])
def test_the_names_of_this_machine_are_taken(client, host):
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:1", "file://", ""])
def test_pages_of_other_sites_are_refused_whatever_they_send(client, origin):
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/process"),
        ("OPTIONS", "/process"),
    ):
        response = client.request(method, path, headers={"Origin": origin}, json=ASK)
        assert error_of(response, 403)["code"] == "origin"
        assert not any(name.startswith("access-control") for name in response.headers)


def test_the_servers_own_page_and_pages_that_are_named_are_taken(client):
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    response = client.post("/v1/completions", headers={"Origin": own}, json=ASK)
    assert response.status_code == 200 and "access-control-allow-origin" not in response.headers
    good = {"Origin": "http://good.example"}
    asked = client.options("/v1/completions", headers=good | {"Access-Control-Request-Method": "POST"})
    assert asked.status_code == 204 and "content-type" in asked.headers["access-control-allow-headers"]
    for response in (client.post("/v1/completions", headers=good, json=ASK), client.get("/nothing", headers=good)):
        assert response.headers["access-control-allow-origin"] == "http://good.example"
    assert client.get("/v1/models").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Bearer s3cret2", "Basic s3cret", "s3cret"])
def test_without_the_key_nothing_but_health_is_answered(locked, header):
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing", "/tokenizer_info"):
        request = locked.build_request("GET", path)
        request.headers.pop("Authorization")
        request.headers.update(headers)
        assert error_of(locked.send(request), 401)["code"] == "invalid_api_key"
    request = locked.build_request("GET", "/health")
    request.headers.pop("Authorization")
    assert locked.send(request).status_code == 200


def test_with_the_key_all_is_answered(locked):
    foreign = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n"
    assert b" 401 " in raw(locked, foreign)
    assert locked.get("/v1/models").status_code == 200
    assert locked.post("/v1/completions", json=ASK).status_code == 200
    assert locked.get("/v1/models", headers={"Authorization": "bearer  s3cret"}).status_code == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client):
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += "Content-Type: application/json\r\n"
    answer = raw(client, f"{head}Content-Length: 99999999999999999999999\r\n\r\n".encode())
    assert b" 413 " in answer or b" 400 " in answer
    answer = raw(client, f"{head}Content-Length: 200000\r\n\r\n".encode())
    assert b" 413 " in answer.partition(b"\r\n")[0] and b"100,000 bytes" in answer

    def parts():
        for _ in range(200):
            yield b" " * 1_000

    response = client.post("/v1/completions", content=parts(), headers={"Content-Type": "application/json"})
    assert error_of(response, 413)
    until(lambda: client.server.admission.n_bytes == 0)


def test_what_is_no_http_and_what_breaks_off_harms_nobody(client):
    assert b" 400 " in raw(client, b"\x16\x03\x01 nonsense\r\n\r\n")
    with socket.create_connection((client.base_url.host, client.base_url.port)) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n")
        s.sendall(b"Content-Type: application/json\r\n\r\n{")
    assert client.post("/v1/completions", json=ASK).status_code == 200
    until(lambda: client.server.admission.n_bytes == 0)


def test_unknown_paths_and_methods_have_the_form_of_errors(client):
    assert "/nothing" in error_of(client.get("/nothing"), 404)["message"]
    response = client.get("/v1/completions")
    assert error_of(response, 405) and response.headers["allow"] == "POST"


def test_any_name_is_taken_for_the_only_model_but_not_in_its_own_path(client):
    assert client.post("/v1/completions", json=ASK | {"model": "gpt-4"}).json()["model"].startswith("tiny")
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert error_of(client.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"


def test_the_figures_count_what_happens(client):
    def figures():
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = figures()
    client.post("/v1/completions", json={"prompt": "hand and thing " * 9, "max_tokens": 7, "logit_bias": {"5": 100}})
    until(lambda: figures()["lit_gpt_request_seconds_count"] > before["lit_gpt_request_seconds_count"])
    after = figures()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["lit_gpt_tokens_generated_total"] == 7 and grown["lit_gpt_time_to_first_token_seconds_count"] == 1
    assert grown['lit_gpt_http_requests_total{path="/v1/completions",status="200"}'] == 1
    assert after["lit_gpt_running"] == after["lit_gpt_waiting"] == after["lit_gpt_admitted"] == 0
    client.post("/v1/completions", json={"prompt": "hand and thing " * 9, "max_tokens": 1})
    assert figures()["lit_gpt_tokens_reused_total"] > after["lit_gpt_tokens_reused_total"]


def test_the_document_names_every_path_and_what_it_answers(client):
    document = client.get("/openapi.json").json()
    paths = {"/process", "/tokenize", "/decode", "/detokenize", "/tokenizer_info", "/health", "/metrics", "/v1/models"}
    assert paths | {"/v1/completions", "/v1/chat/completions", "/v1/models/{name}"} <= document["paths"].keys()
    for path in document["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"] and "200" in operation["responses"]
    assert "HTTPValidationError" not in json.dumps(document)
    (name,) = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert document["paths"]["/runs/{name}/process"]["post"]["parameters"][0]["schema"]["enum"] == [name]


def test_the_page_may_load_nothing_but_its_own_files(client):
    for path in ("/page/..%2fapp.py", "/page/app.py", "/page/", "/page/%2e%2e/app.py", "/page/" + "x" * 5_000 + ".js"):
        assert client.get(path).status_code == 404
    response = client.get("/")
    if response.status_code == 200:
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
