"""HELM's endpoints, with the fields of its client and with those of the challenge."""

import random

import pytest
from serving import error_of, greedy_of, loaded_from, logprobs_of, serving

PROMPT = "the hand and the thing"
HELM = {
    "prompt": PROMPT,
    "temperature": 1e-7,
    "num_return_sequences": 1,
    "max_new_tokens": 5,
    "top_p": 1.0,
    "echo_prompt": False,
    "top_k_per_token": 1,
    "stop_sequences": [],
}
"""What HELM's client sends: exactly these eight keys."""


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return loaded_from(checkpoint)


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded) as client:
        yield client


@pytest.fixture(scope="module")
def process(client):
    def ask(**body):
        response = client.post("/process", json=HELM | body)
        assert response.status_code == 200, response.text
        found = response.json()
        assert found.keys() == {"text", "tokens", "logprob", "request_time"} and found["request_time"] > 0
        assert all(token.keys() == {"text", "logprob", "top_logprob"} for token in found["tokens"])
        assert found["logprob"] == pytest.approx(sum(token["logprob"] for token in found["tokens"]))
        return found

    return ask


def test_a_text_is_greedy_and_its_tokens_are_its_own(loaded, process):
    ids = loaded.tokenizer.encode(PROMPT)
    want = greedy_of(loaded.engine.model, ids, 5)
    found = process()
    assert found["text"] == loaded.tokenizer.decode(ids + want)[len(PROMPT) :]
    table = logprobs_of(loaded.engine.model, ids + want)[len(ids) - 1 :]
    for token, row, i in zip(found["tokens"], table, want, strict=False):
        assert token["logprob"] == pytest.approx(float(row[i]), abs=1e-5)
        assert list(token["top_logprob"].values()) == [token["logprob"]]
    most = process(top_k_per_token=5)["tokens"][0]["top_logprob"]
    assert len(most) in (4, 5)  # ids without a token have the same text, and this model's first draws are such


def test_an_answer_is_scored_by_the_last_tokens_of_an_echo(loaded, client, process):
    """As HELM does it: it counts the answer's tokens, and adds up so many log-probabilities from the end."""
    found = process(prompt=f"{PROMPT} and", echo_prompt=True, max_new_tokens=0)
    n = len(client.post("/tokenize", json={"text": " and"}).json()["tokens"])
    ids = loaded.tokenizer.encode(f"{PROMPT} and")
    table = logprobs_of(loaded.engine.model, ids)
    want = sum(float(table[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids)))
    assert sum(token["logprob"] for token in found["tokens"][-n:]) == pytest.approx(want, abs=1e-5)
    assert found["text"] == f"{PROMPT} and" == "".join(token["text"] for token in found["tokens"])
    assert found["tokens"][0]["logprob"] == 0


def test_a_text_that_follows_nothing_begins_with_the_token_that_helm_writes(loaded, client, process):
    begun = "<|endoftext|>" + PROMPT
    ids = client.post("/tokenize", json={"text": begun, "truncation": False}).json()["tokens"]
    own = loaded.tokenizer.encode(PROMPT)
    assert ids == [loaded.tokenizer.bos_id, *own]
    assert client.post("/tokenize", json={"text": "<|endoftext|>"}).json()["tokens"] == ids[:1]
    assert client.post("/decode", json={"tokens": ids}).json()["text"] == begun
    found = process(prompt=begun, echo_prompt=True, max_new_tokens=0)
    table = logprobs_of(loaded.engine.model, ids)
    assert found["tokens"][0]["text"] == "<s>" and found["text"] == begun
    got = [token["logprob"] for token in found["tokens"][1:]]
    assert got == pytest.approx([float(table[i, t]) for i, t in enumerate(own)], abs=1e-5)


def test_a_window_of_one_more_token_than_the_context_is_scored_whole(loaded, client, process):
    n = loaded.block_size
    text = client.post("/decode", json={"tokens": [loaded.tokenizer.bos_id, *[5, 17] * (n // 2)]}).json()["text"]
    found = process(prompt=text, echo_prompt=True, max_new_tokens=0)
    assert len(found["tokens"]) == n + 1 and found["text"] == text


def test_a_prompt_that_is_too_long_is_cut_on_the_left(loaded, process):
    ids = (loaded.tokenizer.encode("hand thing ") * 99)[: loaded.block_size + 40]
    text = loaded.tokenizer.decode(ids)
    found = process(prompt=text, max_new_tokens=8)
    want = greedy_of(loaded.engine.model, ids[-(loaded.block_size - 8) :], 3)
    assert found["text"].startswith(loaded.tokenizer.decode(want[:1]).replace("\ufffd", ""))
    echoed = process(prompt=text, max_new_tokens=0, echo_prompt=True)
    assert len(echoed["tokens"]) == loaded.block_size + 1 and text.endswith(echoed["text"])
    assert process(max_new_tokens=10**6)["text"]


def test_a_text_ends_before_a_stop_string_and_so_do_its_tokens(loaded, process):
    whole = process(max_new_tokens=40)
    text = whole["text"]
    at = next(i for i in range(4, len(text)) if text[i] not in text[:i] and text[i] != "\ufffd")
    found = process(max_new_tokens=40, stop_sequences=["not there", text[at]])
    assert found["text"] == text[:at]
    n = len(found["tokens"])
    assert found["tokens"] == whole["tokens"][:n] and text[at] in whole["tokens"][n]["text"]


def test_the_challenges_own_fields_mean_what_it_says(client, process):
    body = {"prompt": PROMPT}
    assert client.post("/process", json=body).json()["text"]
    seeded = {"prompt": PROMPT, "num_samples": 1, "max_new_tokens": 20, "top_k": 200, "temperature": 1.5, "seed": 3}
    texts = [client.post("/process", json=seeded | {"seed": s}).json()["text"] for s in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    greedy = client.post("/process", json=seeded | {"top_k": 1}).json()
    assert greedy["text"] == process(max_new_tokens=20)["text"] and len(greedy["tokens"]) == 20
    # HELM asks for the log-probability of one token at a time; that is no reason to draw from one
    drawn = {process(temperature=1.5, top_k_per_token=1, max_new_tokens=20)["text"] for _ in range(3)}
    assert len(drawn) == 3


def test_texts_become_tokens_without_more_and_are_cut_on_the_right(loaded, client):
    ids = loaded.tokenizer.encode(PROMPT, bos=False)
    found = client.post("/tokenize", json={"text": PROMPT, "truncation": True, "max_length": 3}).json()
    assert found["tokens"] == ids[:3] and found.keys() == {"tokens", "request_time"}
    long = {"text": PROMPT * 900, "max_length": 2_048}
    assert len(client.post("/tokenize", json=long).json()["tokens"]) == 2_048
    assert len(client.post("/tokenize", json=long | {"truncation": False}).json()["tokens"]) > 2_048
    assert client.post("/tokenize", json={"text": ""}).json()["tokens"] == []


def test_the_text_of_tokens_never_has_more_tokens_than_they_are(loaded, client):
    """Or HELM sends a request for each character by which it shortens the text."""
    draw = random.Random(0)
    some = [
        loaded.tokenizer.encode("h\u00e9 \u4e2d\U0001f600 the  and\n\ning "),
        list(range(loaded.tokenizer.vocab_size)),
    ]
    for n in range(40):
        ids = draw.choices(draw.choice(some), k=n)
        found = client.post("/decode", json={"tokens": ids}).json()
        again = client.post("/tokenize", json={"text": found["text"], "truncation": False}).json()["tokens"]
        assert len(again) <= len(ids), (ids, found["text"])
    plain = loaded.tokenizer.encode(PROMPT)
    assert client.post("/decode", json={"tokens": plain}).json()["text"] == PROMPT


def test_vllms_tokenizer_is_told_apart_by_its_fields(loaded, client):
    ids = loaded.tokenizer.encode(PROMPT)
    found = client.post("/tokenize", json={"prompt": PROMPT, "add_special_tokens": False}).json()
    assert found == {"count": len(ids), "max_model_len": loaded.block_size, "tokens": ids, "token_strs": None}
    strings = client.post("/tokenize", json={"prompt": PROMPT, "return_token_strs": True}).json()["token_strs"]
    assert "".join(strings) == PROMPT
    eos = loaded.tokenizer.eos_id
    assert client.post("/tokenize", json={"prompt": "</s>"}).json()["tokens"] == [eos]
    assert client.post("/detokenize", json={"tokens": [*ids, eos]}).json() == {"prompt": PROMPT + "</s>"}
    info = client.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["chat_template"]) == ("<s>", "</s>", None)
    for body in ({}, {"text": "a", "prompt": "b"}, {"prompt": None}):
        assert error_of(client.post("/tokenize", json=body), 400)
    for path in ("/decode", "/detokenize"):
        assert error_of(client.post(path, json={"tokens": [10**6]}), 400)["param"] == "tokens"
        assert error_of(client.post(path, json={"tokens": [-1]}), 400)["param"] == "tokens"
