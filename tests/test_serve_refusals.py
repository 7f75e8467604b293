"""What the server refuses of a request's body, by the name of the field and with a reason, and before it costs much."""

import gzip
import json

import pytest
from serving import error_of, loaded_from, serving, with_template

PROMPT = "the hand and the thing "
AS_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def loaded(checkpoint, tmp_path_factory):
    return loaded_from(with_template(checkpoint, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded) as client:
        yield client


@pytest.mark.parametrize(
    "body, param",
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 65}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [99999]}, None),
        ({"prompt": "\ud800"}, None),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"guided_json": {}}, None),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"num_beams": 4}, "num_beams"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"n": 64, "max_tokens": 200, "logprobs": 20, "prompt": [[5]] * 16}, None),
        ({"max_tokens": -1}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, body, param):
    text = json.dumps({"prompt": PROMPT} | body)
    response = client.post("/v1/completions", content=text, headers=AS_JSON)
    if body == {"guided_json": {}}:  # nothing is asked for
        assert response.status_code == 200
        return
    assert error_of(response, 400)["param"] == param


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', '{"prompt": NaN}', "[" * 100_000, "\xff", "1" * 9_999])
def test_what_is_no_request_is_refused(client, text):
    body = text.encode("latin-1")
    error = error_of(client.post("/v1/completions", content=body, headers=AS_JSON), 400)
    for told, why in (("[[", "nested too deeply"), ("\xff", "not in UTF-8"), ("11", "too many digits")):
        assert why in error["message"] or not text.startswith(told)


@pytest.mark.parametrize(
    "body, message",
    [
        ({"prompt": [-1]}, "prompt.0: Input should be greater than or equal to 0"),
        ({"prompt": [1, 2, "a"]}, "prompt.2: Input should be a valid integer"),
        ({"prompt": [[1], []]}, "prompt.1: List should have at least 1 item"),
        ({"prompt": [[1]] * 2_049}, "prompt: List should have at most 2048 items"),
        ({"prompt": 5}, "prompt: Input should be a valid"),
        ({"prompt": "\ud800"}, "half of a character"),
        ({"stop": ["a"] * 65}, "stop: List should have at most 64 items"),
        ({"stop": "a" * 1_001}, "stop: String should have at most 1000 characters"),
        ({"bad_words": ["a"]}, "bad_words: this server does not have a list of banned words"),
    ],
)
def test_the_message_is_about_the_form_that_was_meant(client, body, message):
    found = client.post("/v1/completions", content=json.dumps({"prompt": PROMPT} | body), headers=AS_JSON)
    assert message in error_of(found, 400)["message"]


def test_a_prompt_that_cannot_fit_is_refused_before_its_tokens_are_read(client, loaded, monkeypatch):
    long = "the " * loaded.block_size * 20
    for method in ("encode", "encode_batch"):
        monkeypatch.setattr(type(loaded.tokenizer), method, lambda *args, **kwargs: pytest.fail("was tokenized"))
    talk = {
        "messages": [{"role": "user", "content": long}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]
    }
    for path, body in (("/v1/completions", {"prompt": ["a", long]}), ("/v1/chat/completions", talk)):
        error = error_of(client.post(path, json=body), 400)
        assert error["code"] == "context_length_exceeded" and f"{len(long):,}"[:-1] in error["message"]


def test_a_body_that_is_not_sent_as_json_is_refused(client):
    assert error_of(client.post("/v1/completions", content=b'{"prompt": "a"}'), 415)
    assert error_of(client.post("/v1/completions", data={"prompt": "a"}), 415)
    zipped = gzip.compress(b'{"prompt": "a"}')
    assert error_of(client.post("/v1/completions", content=zipped, headers=AS_JSON | {"Content-Encoding": "gzip"}), 415)
