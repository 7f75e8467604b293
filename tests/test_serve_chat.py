"""/v1/chat/completions: which prompt a conversation becomes, and the shapes of its answers."""

import json

import pytest
from serving import error_of, events, greedy_of, loaded_from, logprobs_of, serving, with_template

from lit_gpt.generation.conversation import asked
from lit_gpt.prompts import Turn, open_style

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the hand?"},
    {"role": "assistant", "content": "and"},
    {"role": "user", "content": "the thing?"},
]


@pytest.fixture(scope="module")
def loaded(checkpoint, tmp_path_factory):
    return loaded_from(with_template(checkpoint, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded) as client:
        yield client


@pytest.fixture(scope="module")
def chat(client):
    def ask(**body):
        response = client.post(
            "/v1/chat/completions", json={"messages": TALK, "temperature": 0, "max_tokens": 6} | body
        )
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def prompt_of(loaded, talk, name="chat_template"):
    style = open_style(name, loaded.tokenizer.path.parent, loaded.tokenizer)
    return asked(style, loaded.tokenizer, [Turn(m["role"], m["content"]) for m in talk]).ids


def test_a_conversation_is_asked_as_in_training_and_answered_greedily(loaded, chat):
    ids = prompt_of(loaded, TALK)
    ask = loaded.tokenizer.backend.encode("<s>assistant: ")
    assert ids[-len(ask) :] == ask
    found = chat(return_token_ids=True, ignore_eos=True)
    assert found["prompt_token_ids"] == ids and found["usage"]["prompt_tokens"] == len(ids)
    (choice,) = found["choices"]
    assert choice["token_ids"] == greedy_of(loaded.engine.model, ids, 6)
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "length"
    assert found["object"] == "chat.completion" and choice["logprobs"] is None


def test_content_in_parts_and_a_developer_are_the_same_conversation(chat):
    parts = [m | {"content": [{"type": "text", "text": c} for c in m["content"]]} for m in TALK]
    parts[0]["role"] = "developer"
    want = chat(return_token_ids=True)["prompt_token_ids"]
    assert chat(messages=parts, return_token_ids=True)["prompt_token_ids"] == want


def test_an_answer_that_is_begun_is_continued(loaded, chat):
    begun = [*TALK, {"role": "assistant", "content": "the h"}]
    ids = prompt_of(loaded, begun)
    for wish in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        assert chat(messages=begun, return_token_ids=True, **wish)["prompt_token_ids"] == ids
    assert loaded.tokenizer.decode(ids).endswith("the h")


def test_variables_of_the_template_reach_it_and_change_nothing_for_others(client, chat):
    plain = chat(return_token_ids=True)["prompt_token_ids"]
    quick = chat(return_token_ids=True, chat_template_kwargs={"quick": True})["prompt_token_ids"]
    assert len(quick) > len(plain) and chat(return_token_ids=True)["prompt_token_ids"] == plain
    body = {"messages": TALK, "chat_template_kwargs": {"messages": []}}
    assert error_of(client.post("/v1/chat/completions", json=body), 400)["param"] == "chat_template_kwargs"


def test_log_probabilities_are_those_of_a_plain_forward_pass(loaded, chat):
    ids = prompt_of(loaded, TALK)
    (choice,) = chat(logprobs=True, top_logprobs=2, return_token_ids=True, ignore_eos=True)["choices"]
    table = logprobs_of(loaded.engine.model, ids + choice["token_ids"])[len(ids) - 1 :]
    content = choice["logprobs"]["content"]
    assert len(content) == 6
    for entry, row, token in zip(content, table, choice["token_ids"], strict=False):
        assert entry["logprob"] == pytest.approx(float(row[token]), abs=1e-5)
        assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(row.topk(2).values.tolist(), abs=1e-5)
    whole = b"".join(bytes(entry["bytes"]) for entry in content)
    assert whole.decode(errors="replace") == choice["message"]["content"] or "\ufffd" in choice["message"]["content"]
    (bare,) = chat(logprobs=True, ignore_eos=True)["choices"]
    assert [entry["top_logprobs"] for entry in bare["logprobs"]["content"]] == [[]] * 6


def test_a_stream_says_the_same_as_a_whole_answer(client, chat):
    wish = {"n": 2, "temperature": 1.0, "seed": 5, "logprobs": True, "top_logprobs": 1, "ignore_eos": True}
    wish |= {"max_tokens": 9, "return_token_ids": True}
    whole = chat(**wish)
    body = {"messages": TALK, "stream": True, "stream_options": {"include_usage": True}} | wish
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        *found, done = events(response)
    assert done == "[DONE]"
    *chunks, last = map(json.loads, found)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    for choice in whole["choices"]:
        first, *mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"]["content"] for c in mine) == choice["message"]["content"]
        assert [t for c in mine for t in c["token_ids"]] == choice["token_ids"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["length"]
        got = [t["token"] for c in mine for t in c["logprobs"]["content"]]
        assert got == [t["token"] for t in choice["logprobs"]["content"]]


def test_an_answer_without_a_number_of_tokens_ends_at_the_servers_limit(loaded, chat, client):
    service = client.server.serving.service
    room = loaded.block_size - chat()["usage"]["prompt_tokens"]
    assert service.limits.max_new_tokens > room
    found = chat(max_tokens=None, ignore_eos=True)
    assert found["usage"]["completion_tokens"] == room
    assert chat(max_completion_tokens=2, ignore_eos=True)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "body, param",
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 2_000}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 1_000}, "n"),
        ({"echo": True}, "echo"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, body, param):
    assert error_of(client.post("/v1/chat/completions", json={"messages": TALK} | body), 400)["param"] == param


def test_a_base_without_a_template_says_how_it_can_be_asked(loaded, checkpoint):
    bare = loaded_from(checkpoint)
    with serving(bare) as client:
        error = error_of(client.post("/v1/chat/completions", json={"messages": TALK}), 400)
        assert "--prompt_style" in error["message"] and error["code"] == "no_prompt_style"
    styled = loaded_from(checkpoint, prompt_style="alpaca")
    with serving(styled) as client:
        wish = {"messages": TALK[1:2], "max_tokens": 1, "return_token_ids": True}
        found = client.post("/v1/chat/completions", json=wish).json()
        assert found["prompt_token_ids"] == prompt_of(styled, TALK[1:2], "alpaca")
        error = error_of(client.post("/v1/chat/completions", json=wish | {"chat_template_kwargs": {"a": 1}}), 400)
        assert error["param"] == "chat_template_kwargs"
