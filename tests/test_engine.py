"""The engine answers many requests at once, each as if it were alone."""

from contextlib import nullcontext

import pytest
import torch
from conftest import write_tokenizer
from parts import ONE_OF_EACH
from tiny import tiny

from lit_gpt.fabric import make_fabric
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request, Sampling
from lit_gpt.tokenizer import Tokenizer

LENGTHS = (7, 1, 33, 12, 40, 3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def prompts(lengths=LENGTHS, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 320, (n,), generator=g).tolist() for n in lengths]


@torch.no_grad()
def alone(model, prompt, n):
    """Greedy tokens, without any cache."""
    ids = list(prompt)
    for _ in range(n):
        length = len(prompt) + n
        positions = torch.arange(len(ids))
        cos_sin = model.rope.of_layers(positions, length)
        ids.append(int(plain_logits(model, ids, cos_sin)[-1].argmax()))
    return ids[len(prompt) :]


def plain_logits(model, ids, cos_sin):
    from lit_gpt.model import visible

    config, x, at = model.config, model.embed(torch.tensor([ids])), torch.arange(len(ids))
    masks = [visible(at, at, window) for window in (0, config.sliding_window)]
    carried = model.carried(torch.tensor([ids]), x)
    for i, block in enumerate(model.transformer.h):
        x = block(x, *cos_sin[i], masks[config.is_sliding(i)], carried=carried)
    return model.logits(model.transformer.ln_f(x))[0]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_rows_of_different_lengths_get_what_each_gets_alone(kind, tokenizer):
    model = tiny(kind)
    engine = Engine(model, tokenizer, max_rows=4, max_tokens=300, prefill_chunk=16)
    n = 12
    requests = [Request(p, n, GREEDY) for p in prompts()]
    answers = engine.complete(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert [t.id for t in answer.tokens] == alone(model, request.ids, n), len(request.ids)
        assert answer.finish == "length" and not answer.error
    assert engine.stats().running == engine.stats().waiting == 0


def test_a_long_prompt_is_read_beside_short_ones_that_keep_coming(tokenizer):
    engine = Engine(tiny("llama-gqa"), tokenizer, max_rows=4, max_tokens=900, prefill_chunk=16)
    long, *others = prompts([160, *[16] * 60])
    found, short = [], []
    engine.submit(Request(long, 1, GREEDY), found.append)
    n = 0
    while not found:
        engine.submit(Request(others[n], 1, GREEDY), short.append)
        engine.step()
        n += 1
    assert 160 / 16 < n <= 160 / 4 + 1  # a quarter of each step at least
    assert len(short) >= 0.6 * n, "those that came later and are short do not wait for it"


def test_fabrics_context_for_16_bits_changes_no_answer(tokenizer):
    model, context = tiny("llama-gqa").bfloat16(), make_fabric("bf16-true").autocast
    shots = prompts([40])[0]  # read in several passes, and then from the cache: with masks
    how = Sampling(temperature=0, repetition_penalty=1.1, presence_penalty=0.3)
    requests = [Request([*shots, *p], 8, how, logprobs=2, prompt_logprobs=0) for p in prompts([5, 30], seed=3)]
    want, found = (
        Engine(model, tokenizer, max_tokens=600, prefill_chunk=16, autocast=autocast).complete(requests)
        for autocast in (nullcontext, context)
    )
    assert found == want and [a.finish for a in found] == ["length"] * 2


def test_a_prompt_that_many_begin_with_is_read_once(tokenizer):
    model = tiny("llama-gqa")
    engine = Engine(model, tokenizer, max_rows=8, max_tokens=3000, prefill_chunk=32)
    shots = prompts([150])[0]
    requests = [Request([*shots, *p], 6, GREEDY) for p in prompts([5] * 12, seed=3)]
    answers = engine.complete(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert [t.id for t in answer.tokens] == alone(model, request.ids, 6)
    assert engine.stats().tokens_read <= 150 + 12 * 5 + 10
    assert [a.n_cached >= 150 for a in answers] == [False] + [True] * 11
    again = engine.complete(requests[:1])[0]
    assert again.n_cached == 154 and [t.id for t in again.tokens] == [t.id for t in answers[0].tokens]
    longer = [*requests[0].ids, *(t.id for t in again.tokens), *prompts([4], seed=5)[0]]  # the next turn of a chat
    (turn,) = engine.complete([Request(longer, 3, GREEDY)])
    assert turn.n_cached >= 154 + 6 and [t.id for t in turn.tokens] == alone(model, longer, 3)
