"""The engine answers many requests at once, each as if it were alone."""

import pytest
import torch
from conftest import SHAPES, write_tokenizer
from tiny import tiny

from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
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
    for i, block in enumerate(model.transformer.h):
        x = block(x, *cos_sin[i], masks[config.is_sliding(i)])
    return model.logits(model.transformer.ln_f(x))[0]


@pytest.mark.parametrize("kind", SHAPES)
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
