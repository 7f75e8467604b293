"""Near-identical texts are found as exact Jaccard similarity defines them."""

import random
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from damage import outcome_of

from lit_gpt.data.prepare.grams import GRAM, Measure
from lit_gpt.data.prepare.minhash import candidates
from lit_gpt.data.prepare.similar import groups, normalize

WORDS = [f"{a}{b}{c}" for a in ("ba", "ne", "sto", "gri") for b in ("lu", "mo", "ti") for c in ("n", "r", "sk", "ld")]


def test_texts_of_twenty_megabytes_are_compared_by_their_beginning_and_in_little_memory():
    long = "ab cd " * 3_500_000

    def compare():
        assert groups([long, f"{long}more", "short", f"{'x' * 9_000} {long}"[:60_000]], 0.8).tolist() == [0, 0, 2, 3]

    outcome = outcome_of(compare)
    assert outcome.kind == "read" and outcome.n_bytes < 2**28, outcome
    beginning = normalize("\ufdfa " * 100_000)  # a character that becomes eighteen
    assert len(beginning) <= 2**20 and normalize(beginning) == beginning


@cache
def gram_set(text):
    text = normalize(text)
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def exact(a, b):
    """Jaccard similarity of the sets of 5-grams, by Python's sets."""
    a, b = gram_set(a), gram_set(b)
    return len(a & b) / len(a | b)


def edited(text, n_edits, rng):
    words = text.split()
    for _ in range(n_edits):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def make_texts(seed, n=80):
    rng = random.Random(seed)
    originals = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(n)]
    return originals + [edited(t, rng.randint(0, 6), rng) for t in originals for _ in range(2)]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_groups_are_the_components_of_exact_jaccard(threshold):
    texts = make_texts(seed=int(threshold * 10))
    found = groups(texts, threshold)
    similar = [(i, j) for i, j in combinations(range(len(texts)), 2) if exact(texts[i], texts[j]) >= threshold]
    parent = list(range(len(texts)))
    for _ in range(4):  # labels sink to the smallest of the component
        for i, j in (*similar, *reversed(similar)):
            parent[i] = parent[j] = min(parent[i], parent[j])
    assert len(similar) > 40 and found.shape == (len(texts),) and found.dtype == np.int64
    together = {(i, j) for i, j in combinations(range(len(texts)), 2) if found[i] == found[j]}
    wanted = {(i, j) for i, j in combinations(range(len(texts)), 2) if parent[i] == parent[j]}
    assert not together - wanted  # never a pair too far apart
    assert len(wanted - together) <= 0.02 * len(wanted)
    assert all(found[i] == min(np.flatnonzero(found == found[i])) for i in range(len(texts)))


@pytest.mark.smoke
def test_case_spaces_and_forms_do_not_count_and_short_or_empty_texts_do_not_collapse():
    texts = ["Name a  colour", "name a colour\n", "", "a", "b", "A", " ", "\uff11\uff12", "12", "name a town"]
    assert groups(texts).tolist() == [0, 0, 2, 3, 4, 3, 2, 7, 7, 9]
    assert groups([]).tolist() == [] and groups(["x"]).tolist() == [0]
    assert groups(["abcdefgh" * 9, "abcdefgh" * 9 + "x"], threshold=1.0).tolist() == [0, 1]


@pytest.mark.smoke
def test_the_measure_is_jaccard(monkeypatch):
    a, b = "the quick brown fox 🦙", "the quick brown dog 🦙"
    texts = [a, b, "", "a", "quick", a + b, b + a] * 3
    pairs = np.triu_indices(len(texts), 1)
    wanted = [exact(texts[i], texts[j]) for i, j in zip(*pairs, strict=True)]
    assert Measure(texts).jaccards(*pairs).tolist() == wanted and exact(a, b) in wanted
    monkeypatch.setattr("lit_gpt.data.prepare.grams._MOST_CACHED", 1)  # as with many texts
    monkeypatch.setattr("lit_gpt.data.prepare.grams._MOST_COMPARED", 200)
    assert Measure(texts).jaccards(*pairs).tolist() == wanted
    assert groups(["\ud800 broken", "\ud800 broken", "x"]).tolist() == [0, 0, 2]


def test_many_copies_of_one_template_are_one_group():
    texts = [f"{'Read the passage below and answer the question that follows it. ' * 4}{i}" for i in range(3000)]
    assert set(groups(texts).tolist()) == {0}


def test_texts_of_one_template_are_told_apart_and_their_doubles_found():
    rng = random.Random(5)
    template = "Classify the sentiment of this review of a film as positive or as negative, and give reasons: "
    texts = [template + " ".join(rng.choices(WORDS, k=14)) for _ in range(2000)]
    doubles = [t.rsplit(" ", 1)[0] + " instead" for t in texts[:200]]
    found = groups(texts + doubles)
    assert sum(found[2000 + i] == found[i] for i in range(200)) >= 190
    assert len(set(found[:2000].tolist())) > 1990


def test_equal_signatures_are_compared_however_many_agree(monkeypatch):
    monkeypatch.setattr("lit_gpt.data.prepare.minhash.MOST", 10)
    half = np.random.default_rng(0).integers(0, 2, (600, 128), dtype=np.uint8)
    found = list(candidates(np.concatenate([half, half]), 0.8, np.arange(1200)))
    pairs = {
        (min(i, j), max(i, j)) for left, right, _ in found for i, j in zip(left.tolist(), right.tolist(), strict=True)
    }
    assert {(i, i + 600) for i in range(600)} <= pairs
