"""A request gets the same whatever its neighbours are; a bad one, a cancelled one or a full memory ends no other."""

import random
import threading

import pytest
import torch
from conftest import write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import deep, tiny

from lit_gpt.errors import UserError
from lit_gpt.generation.batching import alike
from lit_gpt.generation.engine import Engine, joined
from lit_gpt.generation.request import GREEDY, Request, Sampling
from lit_gpt.generation.thread import EngineThread
from lit_gpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("dirty_memory")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module", autouse=True)
def _shared_by_few():
    """Rows that have two tokens in common share them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "_FEWEST", 2)
        yield


@pytest.fixture(scope="module")
def model():
    return tiny("llama-gqa")


def ids_of(answer):
    return [t.id for t in answer.tokens]


def draw_ids(n, seed=0, vocabulary=320):
    return torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_empty(engine):
    """Nothing is left of any request but the prefixes that are kept, and every position has one owner."""
    stats = engine.stats()
    assert stats.running == stats.waiting == 0 and not engine.has_work()
    assert stats.tokens_free + stats.tokens_kept == engine.pool.size
    owned = sorted([(n.start, len(n.ids)) for n in engine.scheduler.prefixes.nodes()] + engine.pool.holes)
    at = 0
    for start, n in owned:
        assert start == at
        at += n
    assert at == engine.pool.size
    assert sorted(engine.scheduler.slots) == list(range(engine.scheduler.max_rows))


ASKED = st.tuples(
    st.integers(0, 3),  # what it begins with
    st.integers(1, 20),  # tokens of its own
    st.integers(1, 9),  # new tokens
    st.sampled_from([GREEDY, Sampling(seed=3), Sampling(temperature=0.7, top_k=9, repetition_penalty=1.3, seed=5)]),
    st.integers(0, 6),  # steps before it comes
    st.integers(0, 12),  # steps before it is cancelled, counted from its arrival; 0: never
)
ALONE = {}
"""Requests -> what they get alone."""


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(ASKED, min_size=1, max_size=10), st.integers(1, 5), st.integers(90, 200), st.integers(1, 40))
def test_random_arrivals_and_cancels_change_no_others_answer(model, tokenizer, asked, max_rows, max_tokens, chunk):
    engine = Engine(model, tokenizer, max_rows=max_rows, max_tokens=max_tokens, prefill_chunk=chunk)
    requests = [
        Request(tuple(draw_ids(17 * begin, seed=begin) + draw_ids(n, seed=n)), new, sampling)
        for begin, n, new, sampling, _, _ in asked
    ]
    deltas, tickets, now, cancelled = [[] for _ in asked], {}, 0, set()
    while engine.step() or len(tickets) < len(asked):
        for i, (*_, arrives, cancels) in enumerate(asked):
            if arrives <= now and i not in tickets:
                tickets[i] = engine.submit(requests[i], deltas[i].append)
            if cancels and i in tickets and now >= arrives + cancels and i not in cancelled:
                engine.cancel(tickets[i])
                cancelled.add(i)
        now += 1
    for request, found in zip(requests, deltas, strict=True):
        key = str(request)
        if key not in ALONE:
            (answer,) = Engine(model, tokenizer, max_rows=1, max_tokens=100).complete([request])
            ALONE[key] = ids_of(answer), answer.text
        got, (ids, text) = joined(found), ALONE[key]
        if got.finish == "cancelled":
            assert ids_of(got) == ids[: len(got.tokens)] and text.startswith(got.text)
        else:
            assert (ids_of(got), got.text, got.finish) == (ids, text, "length")
    assert_empty(engine)


def test_hundreds_of_requests_with_random_cancels_lose_nothing_and_leave_nothing(tokenizer):
    model, rng = deep(n_layer=1), random.Random(0)
    engine = Engine(model, tokenizer, max_rows=32, max_tokens=700, prefill_chunk=128)
    ends, waiting = {}, 400
    alive = set()

    def deliver_to(i):
        def deliver(delta):
            if delta.finish is not None:
                assert i not in ends
                ends[i] = delta.finish
                alive.discard(tickets[i])

        return deliver

    tickets, refused = {}, 0
    for i in range(waiting):
        ids = draw_ids(rng.choice((0, 8, 16)), seed=1, vocabulary=60) + draw_ids(rng.randint(1, 12), i, 60)
        request = Request(ids, rng.randint(0, 8), prompt_logprobs=rng.choice((None, 1)), stop=rng.choice(((), ("a",))))
        try:
            tickets[i] = engine.submit(request if rng.random() > 0.02 else Request([], 5), deliver_to(i))
            alive.add(tickets[i])
        except UserError:
            refused += 1
        if rng.random() < 0.2 and alive:
            engine.cancel(rng.choice(sorted(alive)))
        for _ in range(rng.randint(0, 2)):
            engine.step()
    while engine.step():
        pass
    assert len(ends) + refused == waiting and refused < 100
    assert sum(end == "cancelled" for end in ends.values()) > 20 and "error" not in ends.values()
    assert_empty(engine)
    assert not engine._rows and not engine.sampler._rows


def failing(layer, when, error):
    """Makes a layer of the model fail for some of its inputs."""

    def hook(module, inputs):
        if when(inputs[0]):
            raise error

    return layer.register_forward_pre_hook(hook)


def test_a_row_that_makes_the_model_fail_ends_alone(model, tokenizer):
    requests = [Request([9, i + 1, *draw_ids(i, seed=i + 1, vocabulary=250)], 6, GREEDY) for i in range(6)]
    want = [ids_of(a) for a in Engine(model, tokenizer, max_tokens=300).complete(requests)]
    bad = Request([9, 300, 4], 5, GREEDY)
    engine = Engine(model, tokenizer, max_tokens=300)
    handle = failing(model.transformer.wte, lambda ids: bool((ids == 300).any()), ValueError("a token\nthat fails"))
    try:
        answers = engine.complete([*requests[:3], bad, *requests[3:]])
    finally:
        handle.remove()
    assert [ids_of(a) for a in answers[:3] + answers[4:] if a.finish == "length"] == want
    assert (answers[3].finish, answers[3].error, answers[3].text) == ("error", "a token", "")
    assert_empty(engine)


def test_who_fails_to_take_its_answer_ends_alone(model, tokenizer):
    engine, found = Engine(model, tokenizer, max_tokens=300), []

    def fails(delta):
        raise ConnectionError("gone")

    engine.submit(Request([1, 2], 50, GREEDY), fails)
    engine.submit(Request([1, 2, 3], 8, GREEDY), found.append)
    while engine.step():
        pass
    assert joined(found).finish == "length" and len(joined(found).tokens) == 8
    assert_empty(engine)


def test_without_memory_for_all_the_youngest_go_back_to_the_queue_and_get_the_same(model, tokenizer):
    requests = [Request(draw_ids(n, seed=n), 10, s) for n in (3, 9, 14, 5) for s in (GREEDY, Sampling(seed=n))]
    requests += [Request(draw_ids(20, seed=2), 0, prompt_logprobs=1)]
    want = Engine(model, tokenizer, max_rows=1, max_tokens=300).complete(requests)
    engine = Engine(model, tokenizer, max_tokens=300, prefill_chunk=12, pack=False)
    error, refused = torch.OutOfMemoryError("the GPU is full"), []
    handle = failing(model.transformer.h[1].mlp, lambda x: x.size(1) > 12 and not refused.append(x), error)
    try:
        found = engine.complete(requests)
    finally:
        handle.remove()
    assert len(refused) > 2
    for a, b in zip(found, want, strict=True):
        assert (ids_of(a), a.text, a.finish) == (ids_of(b), b.text, b.finish)
        assert [s.logprob for s in a.prompt[1:]] == pytest.approx([s.logprob for s in b.prompt[1:]], abs=1e-4)
    assert_empty(engine)


def test_what_cannot_be_answered_is_refused_when_it_comes(model, tokenizer):
    engine = Engine(model, tokenizer, max_tokens=100)
    for request, words in (
        (Request([], 3), "no tokens"),
        (Request([320], 3), "token 320 is not one of the model's 320"),
        (Request([-1], 3), "token -1"),
        (Request([1] * 513, 3), "513 tokens, and the model has room for 512"),
        (Request([1] * 90, 20), "90 tokens and up to 20 are to come; the KV cache has room for 100"),
        (Request([1], 3, Sampling(logit_bias={400: 1.0})), "logit_bias is for token 400"),
    ):
        with pytest.raises(UserError, match=words):
            engine.submit(request, print)
    assert_empty(engine)
    assert [len(a.tokens) for a in engine.complete([Request([1] * 81, 20, GREEDY)])] == [20]


def test_a_thread_answers_callers_of_many_threads_and_drains_when_it_stops(model, tokenizer):
    engine, found = Engine(model, tokenizer, max_rows=4, max_tokens=400), {}
    requests = [Request(draw_ids(6, seed=i), 8, GREEDY) for i in range(12)]
    want = [ids_of(a) for a in Engine(model, tokenizer, max_tokens=400).complete(requests)]
    with EngineThread(engine) as thread:

        def ask(i):
            done = threading.Event()
            found[i] = []

            def deliver(delta):
                found[i].append(delta)
                if delta.finish:
                    done.set()

            thread.submit(requests[i], deliver)
            assert done.wait(60)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        last, endless = [], []
        thread.submit(requests[0], last.append)
        thread.submit(Request([3], 300, GREEDY), endless.append)
        thread.stop(drain_seconds=0.2)
    assert [ids_of(joined(found[i])) for i in range(12)] == want
    assert joined(last).finish == "length" and endless[-1].finish in ("cancelled", "length")
    assert_empty(engine)


def test_closing_a_stream_frees_its_place_at_once(model, tokenizer):
    engine = Engine(model, tokenizer, max_tokens=400)
    stream = engine.stream(Request([1, 2, 3], 200, GREEDY))
    got = [next(stream) for _ in range(3)]
    stream.close()
    assert_empty(engine)
    assert len(got) == 3 and all(d.finish is None for d in got)
