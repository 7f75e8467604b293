"""Speculation changes how fast a text comes, and nothing of the text."""

import pytest
import torch
from conftest import write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny import tiny

from lit_gpt.generation.batching.repeats import Repeats
from lit_gpt.generation.batching.speculation import Speculation
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Request, Sampling
from lit_gpt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def model_of(kind="llama-gqa", seed=0):
    torch.manual_seed(seed)
    return tiny(kind)


def noisy_copy(model, noise):
    """A draft that mostly agrees with a model."""
    draft = model_of()
    draft.load_state_dict(model.state_dict())
    with torch.no_grad():
        for p in draft.parameters():
            p.add_(noise * torch.randn_like(p))
    return draft


def texts(engine, requests):
    answers = engine.complete(requests)
    assert not any(a.error for a in answers)
    return [([t.id for t in a.tokens], [t.logprob for t in a.tokens], a.text, a.finish) for a in answers]


def assert_same(got, want):
    for (ids, logprobs, *rest), (want_ids, want_logprobs, *want_rest) in zip(got, want, strict=True):
        assert ids == want_ids and rest == want_rest
        assert logprobs == pytest.approx(want_logprobs, abs=1e-4)


FEW = {t: -1e9 for t in range(320) if t not in (3, 60, 61)}
"""A bias that leaves three tokens, so that a model without training repeats itself."""
KINDS = {
    "greedy": {"sampling": Sampling(temperature=0, logit_bias=FEW)},
    "sampled": {"sampling": Sampling(seed=3, temperature=0.5, logit_bias=FEW)},
    "penalized": {"sampling": Sampling(seed=5, temperature=0.2, frequency_penalty=0.02, logit_bias=FEW)},
    "free": {"sampling": Sampling(seed=4, temperature=0.3, top_k=5, top_p=0.9, repetition_penalty=1.1)},
    "late": {"sampling": Sampling(seed=6, temperature=0.2), "stop_ids": frozenset(range(99)), "min_new_tokens": 12},
    "stopped": {"sampling": Sampling(seed=7, temperature=0.2), "stop": ("a", "e")},
}


REQUESTS = [Request(([3, 60, 61, 60, 3, 61] * 3)[i:], 24, logprobs=1, **k) for i, k in enumerate(KINDS.values())]


@pytest.mark.parametrize("draft", [None, 0.0, 0.05])
def test_every_kind_of_request_has_the_same_text_with_and_without(draft, tokenizer):
    model = model_of()
    want = texts(Engine(model, tokenizer, max_tokens=400), REQUESTS)
    for max_rows, most in ((1, 5), (4, 8)):
        engine = Engine(
            model,
            tokenizer,
            max_rows=max_rows,
            max_tokens=400,
            prefill_chunk=16,
            speculative_tokens=most,
            draft=None if draft is None else noisy_copy(model, draft),
        )
        assert_same(texts(engine, REQUESTS), want)
        assert engine.speculation.n_right > 10
        if draft == 0:
            assert engine.speculation.n_right == engine.speculation.n_guessed
            if max_rows == 1:
                assert engine.stats().steps < 0.5 * sum(len(ids) for ids, *_ in want)


@pytest.mark.parametrize("kind", ["gemma2", "phi3-short", "mixtral"])
def test_models_of_other_kinds(kind, tokenizer):
    model = model_of(kind)
    requests = [
        Request([7, 8, 9] * 9, 30, Sampling(temperature=0, logit_bias=FEW)),
        Request([7, 8, 9] * 5, 30, Sampling(seed=1, temperature=0.1, logit_bias=FEW)),
    ]
    want = texts(Engine(model, tokenizer, max_tokens=300), requests)
    engine = Engine(model, tokenizer, max_tokens=300, speculative_tokens=4)
    assert texts(engine, requests) == want
    assert engine.speculation.n_guessed > 10


@pytest.mark.parametrize("noise", [None, 0.1])
def test_sampled_texts_follow_the_models_probabilities(noise, tokenizer):
    """All texts of three tokens of a model with four likely tokens, counted against their exact probabilities."""
    model = model_of()
    likely = [3, 60, 61, 200]
    bias = {t: 0.0 if t in likely else -1e9 for t in range(model.config.padded_vocab_size)}
    prompt, temperature, n = [3, 60, 61] * 3, 3.0, 800

    def probabilities(ids):
        with torch.no_grad():
            return (model(torch.tensor([ids]))[0, -1, likely].double() / temperature).softmax(-1)

    want = {
        (a, b, c): float(p * q * r)
        for a, p in zip(likely, probabilities(prompt), strict=True)
        for b, q in zip(likely, probabilities([*prompt, a]), strict=True)
        for c, r in zip(likely, probabilities([*prompt, a, b]), strict=True)
    }
    draft = None if noise is None else noisy_copy(model, noise)
    engine = Engine(model, tokenizer, max_rows=16, max_tokens=400, speculative_tokens=2, draft=draft)
    engine.speculation.most_in_a_step, engine.speculation.cost = 99, 0
    sampling = [Sampling(seed=i, temperature=temperature, logit_bias=bias) for i in range(n)]
    answers = engine.complete([Request(prompt, 3, s) for s in sampling])
    assert engine.speculation.n_right > 100
    assert engine.speculation.n_right < engine.speculation.n_guessed
    seen = [tuple(t.id for t in a.tokens) for a in answers]
    assert chisquare([seen.count(text) for text in want], [p * n for p in want.values()]).pvalue > 1e-5


def plainly(ids, n):
    """What `Repeats` promises, looked for everywhere: the number of tokens that match, and what follows them."""
    ends = [e for e in range(2, len(ids)) if ids[e - 2 : e] == ids[-2:]]
    if not ends:
        return 0, []

    def match(end):
        length = 0
        while length < min(32, end) and ids[end - length - 1] == ids[-length - 1]:
            length += 1
        return length

    found = max(ends[-16:], key=lambda e: (match(e), e))
    text = list(ids)
    for i in range(n):
        text.append(text[found + i])
    return match(found), text[len(ids) :]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 2), max_size=24), st.integers(0, 20), st.integers(1, 6))
def test_the_latest_of_the_longest_repeats_is_found_while_a_text_grows(ids, first, n):
    repeats = Repeats()
    for end in range(first, len(ids) + 1):
        repeats.find(ids[:end])
        length, text = plainly(ids[:end], n)
        assert repeats.length == length and len(repeats.chances(n)) == len(text)
        assert repeats.after(ids[:end], len(text)) == text


class Text:
    """A row that repeats two tokens."""

    most_new, n_new = 1000, 0

    def __init__(self, ids=(1, 2) * 50):
        self.ids, self.guessing = list(ids), None


def test_what_is_guessed_follows_what_was_right_in_the_text():
    speculation, row = Speculation(8), Text()
    assert speculation.guess([row], None, 1) == [[1, 2] * 4]
    for _ in range(40):
        (guess,) = speculation.guess([row], None, 1)
        speculation.learn(row, len(guess), [7])
    n_guessed = speculation.n_guessed
    assert guess == [] and n_guessed < 60
    for _ in range(60):  # what it would have guessed is right, which it sees without guessing
        (guess,) = speculation.guess([row], None, 1)
        speculation.learn(row, len(guess), [*guess, 2 if len(guess) % 2 else 1])
    assert len(guess) == 8
    row.n_new = 999
    assert speculation.guess([row], None, 1) == [[]]  # the last token needs no guess


def test_guesses_of_many_rows_are_those_that_are_likely():
    speculation = Speculation(8)
    sure, unsure, new = Text(), Text([5, 6, 7, 8, 5, 6]), Text(range(30))
    alone = [len(speculation.guess([row], None, 1)[0]) for row in (sure, unsure, new)]
    assert alone[0] == 8 and 0 < alone[1] < 8 and alone[2] == 0
    assert len(Speculation(8, experts=True).guess([unsure], None, 1)[0]) < alone[1]  # where a token costs more
    two = list(map(len, speculation.guess([sure, Text()], None, 2)))
    assert sum(two) == 10, "no more than take the matmuls of single tokens"
    crowd = [Text(range(30)) for _ in range(8)]
    lengths = list(map(len, speculation.guess([unsure, sure, *crowd], None, 10)))
    assert lengths[0] == 0 and 0 < lengths[1] <= 8 and not any(lengths[2:])  # a token of a full step costs more


class Draft:
    """Guesses as much as it is asked for."""

    def guess(self, rows, lengths, sampler):
        return [[1] * n for n in lengths]


def test_a_draft_whose_guesses_are_wrong_is_rarely_asked_and_one_that_is_right_for_more():
    speculation, row = Speculation(8, draft=Draft()), Text()
    lengths = []
    for _ in range(600):
        (guess,) = speculation.guess([row], None, 1)
        lengths.append(len(guess))
        speculation.learn(row, len(guess), [0])
    assert sum(lengths) < 16 and lengths[0] == 2
    while not (guess := speculation.guess([row], None, 1)[0]):
        pass
    for _ in range(4):
        speculation.learn(row, len(guess), [*guess, 1])
        (guess,) = speculation.guess([row], None, 1)
    assert len(guess) == 8
    assert speculation.guess([row], None, 10) == [[1, 1]]  # a full step leaves less room
    row.n_new = 999
    assert speculation.guess([row], None, 1) == [[]]  # the last token needs no guess
