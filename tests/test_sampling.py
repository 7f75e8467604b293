"""Each row of a step draws as its own request says, whatever its neighbours are; the oracle is transformers."""

from collections import Counter
from itertools import product

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from lit_gpt.errors import UserError
from lit_gpt.generation.request import GREEDY, Request, Sampling
from lit_gpt.generation.sampling.sampler import Sampler

V = 97
PROMPT, TEXT = [3, 7, 7, 50, 96], [7, 11, 11, 11, 60]
EOS = frozenset({2, 11})


def make_logits(seed=0, n=1):
    return torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * 3


def wanted(logits, s, prompt=PROMPT, text=TEXT, banned=()):
    """Probabilities, (V,), of transformers for one line of logits; its own formulas where it has no processor."""
    x, ids = logits.clone()[None], torch.tensor([[*prompt, *text]])
    for token, value in s.logit_bias.items():
        x[0, token] += value
    if s.repetition_penalty != 1:
        x = transformers.RepetitionPenaltyLogitsProcessor(s.repetition_penalty)(ids, x)
    for token, n in Counter(text).items():  # OpenAI's API reference: mu[j] - c[j] * frequency - (c[j] > 0) * presence
        x[0, token] -= n * s.frequency_penalty + s.presence_penalty
    x[0, list(banned)] = -torch.inf
    x = transformers.TemperatureLogitsWarper(s.temperature)(ids, x)
    if s.top_k is not None:
        x = transformers.TopKLogitsWarper(s.top_k)(ids, x)
    if s.top_p < 1:
        x = transformers.TopPLogitsWarper(s.top_p)(ids, x)
    if s.min_p > 0:
        x = transformers.MinPLogitsWarper(s.min_p)(ids, x)
    return x[0].softmax(-1)


def drawn(logits, requests, text=TEXT):
    """Tokens that one step draws for requests whose texts have gone on with `text` already."""
    sampler, rows = Sampler(V), list(range(len(requests)))
    for row, request in enumerate(requests):
        sampler.add(row, request)
    for token in text:
        sampler.advance(rows, torch.full((len(rows),), token))
    return sampler.sample(logits.expand(len(rows), -1), rows).tolist()


def assert_follows(tokens, p):
    """Chi-square test at a level of one in a million, with rare tokens taken together."""
    n, counts = len(tokens), torch.bincount(torch.tensor(tokens), minlength=V).double()
    assert not counts[p == 0].any(), "a token was drawn that should have been removed"
    often = p * n >= 5
    observed = [*counts[often].tolist(), counts[~often].sum().item()]
    expected = [*(p[often].double() * n).tolist(), (p[~often].double() * n).sum().item()]
    if expected[-1] < 5:
        observed, expected = [*observed[:-2], sum(observed[-2:])], [*expected[:-2], sum(expected[-2:])]
    scale = sum(observed) / sum(expected)
    if len(observed) > 1:
        assert chisquare(observed, [e * scale for e in expected]).pvalue > 1e-6


SWITCHES = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 9},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9},
    "bias": {"logit_bias": {5: 4.0, 60: -2.0, 11: 100.0 / 30}},
}


@pytest.mark.parametrize(
    "names", [(), *((n,) for n in SWITCHES), *product(("top_k", "top_p"), ("min_p", "repetition"))]
)
def test_every_switch_draws_with_the_probabilities_of_transformers(names):
    given = {k: v for n in names for k, v in SWITCHES[n].items()}
    logits = make_logits(1)
    tokens = drawn(logits, [Request(PROMPT, 9, Sampling(**given, seed=i)) for i in range(2500)])
    assert_follows(tokens, wanted(logits[0], Sampling(**given)))


def test_all_switches_together_and_rows_of_every_kind_side_by_side():
    everything = {k: v for given in SWITCHES.values() for k, v in given.items()}
    kinds = [Sampling(**g) for g in (everything, {}, {"temperature": 0.0}, {"top_p": 0.8}, {"min_p": 0.1, "top_k": 50})]
    logits = make_logits(2)
    requests = [Request(PROMPT, 9, Sampling(**{**vars(s), "seed": i})) for i in range(1500) for s in kinds]
    tokens = drawn(logits, requests)
    for i, s in enumerate(kinds):
        if s.temperature == 0:
            assert set(tokens[i :: len(kinds)]) == {int(logits.argmax())}
        else:
            assert_follows(tokens[i :: len(kinds)], wanted(logits[0], s))


floats = st.floats(0.05, 1.0, exclude_min=True)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-7, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 200),
    top_p=floats,
    min_p=st.just(0.0) | floats,
    repetition_penalty=st.floats(0.5, 2.0),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-5, 5), max_size=3),
    seed=st.integers(-(2**70), 2**70),
)


@settings(max_examples=60, deadline=None)
@given(samplings, samplings, st.integers(0, 100), st.lists(st.integers(0, V - 1), max_size=6))
def test_a_row_draws_the_same_alone_and_among_others_and_only_what_is_left(one, other, seed, text):
    logits = make_logits(seed)
    (token,) = drawn(logits, [Request(PROMPT, 9, one)], text)
    assert drawn(logits, [Request([1], 9, other), Request(PROMPT, 9, one), Request([9], 9)], text)[1] == token
    if one.temperature > 1e-5:
        assert wanted(logits[0], one, text=text)[token] > 0
    else:
        assert token == wanted(logits[0], Sampling(**{**vars(one), "temperature": 1.0}), text=text).argmax()


def test_a_text_does_not_depend_on_when_its_neighbours_join_and_leave():
    request = Request(PROMPT, 40, Sampling(temperature=1.5, seed=5, presence_penalty=0.5))
    alone, crowd = Sampler(V), Sampler(V)
    alone.add(0, request)
    crowd.add(3, request)
    want, got = [], []
    for n in range(40):
        if n % 4 == 0:
            crowd.add(n % 3, Request([n], 9, Sampling(top_k=2, frequency_penalty=1.0) if n % 8 else GREEDY))
        others = [r for r in (0, 1, 2) if r in crowd]
        rows = [*others[:1], 3, *others[1:]]
        logits = make_logits(n)
        want += alone.sample(logits, [0]).tolist()
        got.append(
            crowd.sample(torch.cat([logits if r == 3 else make_logits(r + 99) for r in rows]), rows)[
                rows.index(3)
            ].item()
        )
        if n % 4 == 3:
            crowd.remove(others[0])
    assert got == want and len(set(got)) > 10


def test_seeds_differ_and_no_seed_follows_torchs():
    logits = make_logits(3) / 3
    texts = []
    for seed in (1, 1, 2, None, None):
        sampler = Sampler(V)
        torch.manual_seed(0)
        sampler.add(0, Request(PROMPT, 30, Sampling(seed=seed)))
        texts.append([int(sampler.sample(logits, [0])) for _ in range(30)])
    assert texts[0] == texts[1] != texts[2] and texts[3] == texts[4] != texts[0]


def test_stop_tokens_are_not_drawn_before_min_new_tokens():
    logits = make_logits(4)
    logits[0, 11] = 30.0  # all but certain
    sampler = Sampler(V)
    sampler.add(0, Request(PROMPT, 9, Sampling(seed=1), stop_ids=EOS, min_new_tokens=3))
    sampler.add(1, Request(PROMPT, 9, GREEDY, stop_ids=EOS))
    steps = [sampler.sample(logits.expand(2, -1), [0, 1]).tolist() for _ in range(4)]
    assert all(a not in EOS for a, _ in steps[:3]) and steps[3][0] == 11 and all(b == 11 for _, b in steps)


def test_tokens_supposed_ahead_count_as_drawn_until_they_are():
    """What speculation asks: the same tokens, whether the ones before are supposed or drawn."""
    request = Request(
        PROMPT, 9, Sampling(seed=4, frequency_penalty=1.0, repetition_penalty=1.5, top_k=20), min_new_tokens=3
    )
    lines = torch.cat([make_logits(i) for i in range(5)])
    plain, ahead = Sampler(V), Sampler(V)
    for s in (plain, ahead):
        s.add(2, request)
        s.add(0, Request([1], 9, GREEDY))
    text = [int(plain.sample(line[None], [2])) for line in lines[:4]]
    supposed = [text[:i] for i in range(4)]
    got = ahead.draw(lines[[0, 1, 2, 3, 4]], [2, 2, 2, 2, 0], [*supposed, []]).tolist()
    assert got[:4] == text
    ahead.advance([2, 2], torch.tensor(text[:2]))
    assert ahead.draw(lines[2:4], [2, 2], [[], text[2:3]]).tolist() == text[2:]


def test_logits_stay_as_they_were():
    logits, before = make_logits(5), make_logits(5)
    drawn(logits, [Request(PROMPT, 9, Sampling(repetition_penalty=2.0, logit_bias={1: 5.0}, min_p=0.3, top_p=0.5))])
    assert torch.equal(logits, before)


def test_a_bias_for_a_token_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"logit_bias is for token 97, and the model has tokens 0 to 96"):
        Sampler(V).add(0, Request([1], 9, Sampling(logit_bias={97: 1.0})))
