"""Log-probabilities of given and of drawn tokens are exact, whatever is computed beside them."""

import pytest
from conftest import write_tokenizer
from scored_texts import KINDS, assert_scored, draw_ids, plain
from tiny import tiny

from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("dirty_memory")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_echo_gives_the_plain_models_log_probabilities_in_chunks_beside_other_rows(kind, tokenizer):
    model = tiny(kind)
    engine = Engine(model, tokenizer, max_rows=8, max_tokens=600, prefill_chunk=24)
    texts = [draw_ids(n, seed=n) for n in (2, 3, 25, 60, 1)]
    requests = [Request(t, 0, prompt_logprobs=3) for t in texts]
    others = [Request(draw_ids(40, seed=9), 20, GREEDY), Request(draw_ids(5, seed=8), 20, GREEDY)]
    answers = engine.complete([*requests[:2], *others, *requests[2:]])
    for ids, answer in zip(texts, [*answers[:2], *answers[4:]], strict=True):
        logprobs = plain(model, ids) if len(ids) > 1 else None
        assert_scored(answer.prompt, ids, logprobs, 0, 3)
        assert answer.finish == "length" and answer.text == "" and not answer.tokens


def test_the_answers_of_one_question_are_scored_from_where_they_begin_and_share_the_question(tokenizer):
    model = tiny("llama-gqa")
    engine = Engine(model, tokenizer, max_rows=8, max_tokens=2000, prefill_chunk=64)
    shots = draw_ids(100, seed=1)
    questions = [[*shots, *draw_ids(30, seed=10 + i)] for i in range(4)]
    texts = [(q, draw_ids(3 + j, seed=100 + 10 * i + j)) for i, q in enumerate(questions) for j in range(4)]
    requests = [Request([*q, *a], 0, prompt_logprobs=0, prompt_logprobs_from=len(q)) for q, a in texts]
    for (q, a), answer in zip(texts, engine.complete(requests), strict=True):
        assert_scored(answer.prompt, [*q, *a], plain(model, [*q, *a]), len(q), 0)
    read = engine.stats().tokens_read
    assert read <= 100 + 4 * 30 + sum(len(a) + 1 for _, a in texts)


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral", "gemma2"])
@pytest.mark.parametrize("new", [0, 3])
def test_prompts_that_are_scored_whole_are_computed_once_with_the_scores_of_what_they_share(kind, new, tokenizer):
    model = tiny(kind)
    engine = Engine(model, tokenizer, max_rows=4, max_tokens=1500, prefill_chunk=32)
    shots = draw_ids(100, seed=1)
    texts = [[*shots, *draw_ids(4 + i, seed=50 + i)] for i in range(8)]
    texts += [texts[2], texts[3][:101], shots[:60]]
    tops = [2, 0, 2, 1, 2, 0, 0, 2, 2, 1, 0]
    requests = [Request(t, new, GREEDY, prompt_logprobs=k) for t, k in zip(texts, tops, strict=True)]
    together = engine.complete(requests)
    read = engine.stats().tokens_read
    assert read <= 100 + sum(len(t) - 98 for t in texts if len(t) > 100) + 2 + 32
    one_by_one = [engine.complete([request])[0] for request in requests]
    assert engine.stats().tokens_read <= read + 2 * len(texts)
    for answers in (together, one_by_one):
        for ids, k, answer in zip(texts, tops, answers, strict=True):
            assert_scored(answer.prompt, ids, plain(model, ids), 0, k)
            assert len(answer.tokens) == new


def test_scores_are_computed_again_where_more_is_asked_than_is_kept(tokenizer):
    model = tiny("llama-gqa")
    engine = Engine(model, tokenizer, max_rows=4, max_tokens=500)
    ids = draw_ids(50)
    read = 0
    for k, begin, n in (
        (None, 0, 49),
        (0, 20, 30),
        (0, 25, 1),
        (0, 10, 40),
        (3, 10, 40),
        (1, 12, 1),
        (3, 10, 1),
        (20, 30, 20),
        (8, 30, 1),
        (20, 30, 20),
    ):
        request = Request(ids, 0 if k is not None else 1, GREEDY, prompt_logprobs=k, prompt_logprobs_from=begin)
        (answer,) = engine.complete([request])
        read, before = engine.stats().tokens_read, read
        assert read - before == (50 if k is None else n), (k, begin)
        if k is not None:
            assert_scored(answer.prompt, ids, plain(model, ids), begin, k)


def test_drawn_tokens_have_the_log_probability_of_the_models_own_logits_and_the_largest_is_greedy(tokenizer):
    model = tiny("gemma2")
    engine = Engine(model, tokenizer, max_rows=4, max_tokens=400)
    ids = draw_ids(9)
    request = Request(ids, 8, GREEDY, logprobs=5, prompt_logprobs=2)
    answer, _ = engine.complete([request, Request(draw_ids(20, seed=3), 12, logprobs=0)])
    whole = [*ids, *(t.id for t in answer.tokens)]
    assert_scored([*answer.prompt[:1], *answer.prompt[1:]], ids, plain(model, whole), 0, 2)
    assert all(t.is_greedy and t.logprob == t.top[0][1] and t.id == t.top[0][0] for t in answer.tokens)
    logprobs = plain(model, whole)
    for at, t in enumerate(answer.tokens, len(ids)):
        assert t.logprob == pytest.approx(float(logprobs[at - 1][t.id]), abs=1e-4)


def test_a_text_that_fills_the_context_is_scored_to_its_last_token(tokenizer):
    model = tiny("llama-gqa", max_position_embeddings=64)
    engine = Engine(model, tokenizer, max_rows=2, max_tokens=64, prefill_chunk=48)
    ids = draw_ids(65)
    (answer,) = engine.complete([Request(ids, 0, prompt_logprobs=0, prompt_logprobs_from=5)])
    assert_scored(answer.prompt, ids, plain(model, ids), 5, 0)


def test_answers_of_one_token_are_read_once_and_go_on_when_the_first_is_cancelled(tokenizer):
    model = tiny("gemma2")
    engine = Engine(model, tokenizer, max_rows=2, max_tokens=500)
    question = draw_ids(40)
    requests = [
        Request([*question, answer], 0, prompt_logprobs=n_top, prompt_logprobs_from=first)
        for answer, n_top, first in ((5, 0, 40), (6, 2, 38), (7, 1, 40), (5, 0, 40), (9, 3, 0))
    ]
    found = [[] for _ in requests]
    tickets = [engine.submit(r, deltas.append) for r, deltas in zip(requests, found, strict=True)]
    engine.cancel(tickets[0])
    engine.cancel(tickets[2])
    while engine.step():
        pass
    assert [deltas[-1].finish for deltas in found] == ["cancelled", "length", "cancelled", "length", "length"]
    logprobs = plain(model, requests[0].ids)
    for i in (1, 3, 4):
        request = requests[i]
        first = request.prompt_logprobs_from
        assert_scored(found[i][0].prompt, request.ids, logprobs, first, request.prompt_logprobs)
    assert engine.stats().tokens_read == 40 and engine.stats().steps == 1
