"""/v1/completions: what it continues and scores, and in which shapes."""

import json

import pytest
from serving import error_of, events, greedy_of, loaded_from, logprobs_of, serving, with_template

from lit_gpt.generation.request import Sampling
from lit_gpt.serve.schemas.openai import CompletionBody

PROMPT = "the hand and the thing "


@pytest.fixture(scope="module")
def loaded(checkpoint, tmp_path_factory):
    return loaded_from(with_template(checkpoint, tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module")
def client(loaded):
    with serving(loaded) as client:
        yield client


@pytest.fixture(scope="module")
def complete(client):
    def ask(**body):
        response = client.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, "max_tokens": 6} | body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def test_a_greedy_text_is_that_of_plain_forward_passes(loaded, complete):
    ids = loaded.tokenizer.encode(PROMPT)
    found = complete(return_token_ids=True, ignore_eos=True)
    (choice,) = found["choices"]
    want = greedy_of(loaded.engine.model, ids, 6)
    assert choice["token_ids"] == want and choice["prompt_token_ids"] == ids
    both = loaded.tokenizer.decode(ids + want)
    assert choice["text"] == both[len(PROMPT) :] and choice["finish_reason"] == "length"
    assert found["usage"]["prompt_tokens"] == len(ids) and found["usage"]["completion_tokens"] == 6
    assert found["object"] == "text_completion" and found["model"] == "tiny"
    assert complete(temperature=1e-7, ignore_eos=True)["choices"][0]["text"] == choice["text"]


def test_scores_of_an_echo_are_those_of_a_plain_forward_pass(loaded, complete):
    ids = loaded.tokenizer.encode(PROMPT)
    (choice,) = complete(prompt=ids, echo=True, max_tokens=1, logprobs=1, seed=1234)["choices"]
    scores, table = choice["logprobs"], logprobs_of(loaded.engine.model, ids)
    n = len(ids)
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["top_logprobs"]) == n + 1
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    for i in range(1, n):
        assert scores["token_logprobs"][i] == pytest.approx(float(table[i - 1, ids[i]]), abs=1e-5)
        top = scores["top_logprobs"][i]
        assert max(top.values()) == pytest.approx(float(table[i - 1].max()), abs=1e-5)
        is_greedy = int(table[i - 1].argmax()) == ids[i]
        assert (scores["token_logprobs"][i] == max(top.values())) == is_greedy
    assert choice["text"].startswith(PROMPT)
    for token, offset in zip(scores["tokens"][:n], scores["text_offset"][:n], strict=True):
        assert choice["text"][offset:].startswith(token)


def test_only_scoring_gives_the_prompt_back_and_nothing_else(loaded, complete):
    found = complete(echo=True, max_tokens=0, logprobs=2)
    (choice,) = found["choices"]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(loaded.tokenizer.encode(PROMPT))
    assert found["usage"]["completion_tokens"] == 0
    assert complete(max_tokens=0)["choices"][0]["text"] == ""


def test_prompts_are_a_text_texts_ids_or_lists_of_ids(loaded, complete):
    texts = [PROMPT, "an ant"]
    ids = [loaded.tokenizer.encode(text) for text in texts]
    alone = [complete(prompt=text)["choices"][0]["text"] for text in texts]
    for prompt in (texts, ids):
        choices = complete(prompt=prompt)["choices"]
        assert [c["index"] for c in choices] == [0, 1] and [c["text"] for c in choices] == alone
    assert complete(prompt=ids[1])["choices"][0]["text"] == alone[1]
    assert complete(prompt=ids, echo=True)["choices"][1]["text"] == "an ant" + alone[1]


def test_an_empty_prompt_begins_a_text(loaded, complete):
    found = complete(prompt="", return_token_ids=True)
    assert found["choices"][0]["prompt_token_ids"] == [loaded.tokenizer.bos_id]
    assert complete(prompt="", echo=True, max_tokens=0)["choices"][0]["text"] == ""


def test_several_texts_of_a_prompt_differ_and_a_seed_brings_them_back(complete):
    wish = {"temperature": 1.0, "n": 3, "max_tokens": 8, "seed": 7}
    texts = [c["text"] for c in complete(**wish)["choices"]]
    assert len(set(texts)) == 3
    assert [c["text"] for c in complete(**wish)["choices"]] == texts
    assert [c["text"] for c in complete(**wish | {"seed": 8})["choices"]] != texts
    two = complete(**wish, prompt=[PROMPT, "an ant"])
    assert [c["index"] for c in two["choices"]] == list(range(6))
    assert [c["text"] for c in two["choices"][:3]] == texts


def test_the_best_of_several_texts_are_those_with_the_highest_mean_log_probability(complete):
    wish = {"temperature": 1.0, "max_tokens": 5, "seed": 3, "ignore_eos": True}
    every = complete(**wish, n=6, logprobs=0)["choices"]
    by_mean = sorted(every, key=lambda c: sum(c["logprobs"]["token_logprobs"]), reverse=True)
    best = complete(**wish, n=2, best_of=6)
    assert [c["text"] for c in best["choices"]] == [c["text"] for c in by_mean[:2]]
    assert best["choices"][0]["logprobs"] is None and best["usage"]["completion_tokens"] == 30


def test_a_stop_string_ends_a_text_and_is_not_in_it_unless_asked_for(complete):
    text = complete(max_tokens=12, ignore_eos=True)["choices"][0]["text"]
    stop = text[3:5]
    at = text.find(stop)
    for value in (stop, [stop, "not there"], [stop, None, ""]):
        (choice,) = complete(max_tokens=12, ignore_eos=True, stop=value)["choices"]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[:at], "stop", stop)
    kept = complete(max_tokens=12, ignore_eos=True, stop=stop, include_stop_str_in_output=True)["choices"][0]
    assert kept["text"] == text[: at + len(stop)]


def test_a_stop_token_ends_a_text_is_scored_and_not_shown(loaded, complete):
    ids = loaded.tokenizer.encode(PROMPT)
    third = greedy_of(loaded.engine.model, ids, 3)[-1]
    (choice,) = complete(stop_token_ids=[third], logprobs=0, return_token_ids=True, ignore_eos=True)["choices"]
    assert choice["token_ids"][-1] == third and choice["stop_reason"] == third and choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"])
    assert choice["text"] == complete(max_tokens=len(choice["token_ids"]) - 1, ignore_eos=True)["choices"][0]["text"]


def test_the_token_that_ends_texts_counts_and_is_hidden(loaded, complete):
    eos = loaded.tokenizer.eos_id
    wish = {"logit_bias": {str(eos): 100.0}, "logprobs": 1, "return_token_ids": True}
    found = complete(**wish)
    (choice,) = found["choices"]
    assert choice["token_ids"] == [eos] and choice["text"] == "" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"] == ["</s>"] and found["usage"]["completion_tokens"] == 1
    (longer,) = complete(**wish, min_tokens=3)["choices"]
    assert longer["token_ids"][3:] == [eos] and eos not in longer["token_ids"][:3]
    (ignored,) = complete(**wish, ignore_eos=True)["choices"]
    assert ignored["token_ids"] == [eos] * 6 and ignored["text"] == ""
    (shown,) = complete(**wish, ignore_eos=True, skip_special_tokens=False)["choices"]
    assert shown["text"] == "</s>" * 6
    (named,) = complete(**wish, ignore_eos=True, stop="</s>")["choices"]
    assert named["token_ids"] == [eos] and named["stop_reason"] == "</s>"


def test_biases_and_penalties_reach_the_sampler(loaded, complete):
    one = loaded.tokenizer.encode("x")[0]
    assert complete(logit_bias={str(one): 100})["choices"][0]["text"] == "xxxxxx"
    wish = {"logit_bias": {str(one): 15}, "return_token_ids": True, "ignore_eos": True, "max_tokens": 20}
    assert complete(**wish)["choices"][0]["token_ids"] == [one] * 20
    for penalty in ({"frequency_penalty": 2.0}, {"repetition_penalty": 50.0}):
        assert complete(**wish, **penalty)["choices"][0]["token_ids"].count(one) < 20


def test_every_field_of_sampling_is_what_the_engine_gets():
    fields = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5}
    fields |= {"presence_penalty": -1.0, "frequency_penalty": 0.25, "seed": 11}
    assert CompletionBody(**fields, logit_bias={"3": -1}).sampling() == Sampling(**fields, logit_bias={3: -1})
    assert CompletionBody(**fields).sampling(2).seed == 13
    assert CompletionBody().sampling() == Sampling()
    for off in (-1, 0):
        assert CompletionBody(top_k=off).sampling().top_k is None


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_limits_that_leave_one_token_are_greedy(complete, limit):
    greedy = complete(ignore_eos=True)["choices"][0]["text"]
    assert complete(temperature=2.0, ignore_eos=True, **limit)["choices"][0]["text"] == greedy


def test_prompt_logprobs_have_the_shape_of_vllm(loaded, complete):
    ids = loaded.tokenizer.encode(PROMPT)
    (choice,) = complete(prompt_logprobs=2)["choices"]
    found, table = choice["prompt_logprobs"], logprobs_of(loaded.engine.model, ids)
    assert found[0] is None and len(found) == len(ids)
    for i in range(1, len(ids)):
        entry = found[i][str(ids[i])]
        assert entry["logprob"] == pytest.approx(float(table[i - 1, ids[i]]), abs=1e-5)
        assert sum(e["rank"] in (1, 2) for e in found[i].values()) == 2
        assert entry["rank"] in (None, 1 + int((table[i - 1] > table[i - 1, ids[i]]).sum()))


def test_a_prompt_is_cut_on_the_left_where_the_request_says_so(loaded, complete):
    ids = loaded.tokenizer.encode(PROMPT)
    (choice,) = complete(truncate_prompt_tokens=3, return_token_ids=True, echo=True)["choices"]
    assert choice["prompt_token_ids"] == ids[-3:]
    assert choice["text"].startswith(loaded.tokenizer.decode(ids[-3:]))
    long = ids * 200
    (choice,) = complete(prompt=long, truncate_prompt_tokens=-1, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == long[-(loaded.block_size - 6) :]


def test_a_request_that_does_not_fit_is_told_both_numbers(client, loaded):
    n = loaded.block_size
    error = error_of(client.post("/v1/completions", json={"prompt": [5] * n, "max_tokens": 10}), 400)
    assert f"{n:,}" in error["message"] and f"{n + 10:,}" in error["message"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
    assert client.post("/v1/completions", json={"prompt": [5] * n, "max_tokens": 0, "echo": True}).status_code == 200


def test_fields_that_nobody_knows_and_nulls_are_ignored(complete):
    plain = complete()["choices"][0]["text"]
    nulls = dict.fromkeys(("top_p", "stop", "n", "logprobs", "stream", "suffix", "seed", "best_of", "user", "tools"))
    neutral = {"functions": [], "tool_choice": "auto", "num_beams": 1, "typical_p": 1.0, "modalities": ["text"]}
    assert complete(**nulls, **neutral, do_sample=False, made_up={"a": 1})["choices"][0]["text"] == plain


def test_a_stream_says_the_same_as_a_whole_answer(client, complete):
    wish = {"n": 2, "temperature": 1.0, "seed": 5, "logprobs": 1, "echo": True, "max_tokens": 9, "ignore_eos": True}
    whole = complete(**wish)
    body = {"prompt": PROMPT, "stream": True, "stream_options": {"include_usage": True}} | wish
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *found, done = events(response)
    assert done == "[DONE]"
    *chunks, last = map(json.loads, found)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 18
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert all(chunk["usage"] is None and chunk["object"] == "text_completion" for chunk in chunks)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert len(mine) > 2 and "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["length"]
        for key in ("tokens", "text_offset"):
            assert [x for c in mine for x in c["logprobs"][key]] == choice["logprobs"][key]
        got = [x for c in mine for x in c["logprobs"]["token_logprobs"]]
        assert got[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-5)


def test_a_stream_without_usage_has_none(client):
    with client.stream("POST", "/v1/completions", json={"prompt": PROMPT, "max_tokens": 3, "stream": True}) as response:
        *chunks, done = events(response)
    assert done == "[DONE]" and all("usage" not in json.loads(chunk) for chunk in chunks)


def test_a_stream_that_is_refused_is_refused_before_it_begins(client):
    assert error_of(client.post("/v1/completions", json={"prompt": [5] * 999, "stream": True}), 400)
