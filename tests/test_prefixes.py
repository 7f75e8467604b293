"""What texts begin alike is kept once, found again, and given up when memory is wanted, least recently used first."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import write_tokenizer
from tiny import deep, tiny

from lit_gpt.generation.batching.pool import Pool
from lit_gpt.generation.batching.prefixes import Prefixes, spans
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.tokenizer import Tokenizer

KEY = (None, False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def array(text):
    return np.array([ord(c) for c in text], dtype=np.int32)


def kept(tree, text, pool=None):
    """Keeps a text, whose keys are the tokens themselves."""
    ids = array(text)
    start = tree.pool.take(len(ids))
    tree.pool.k[0][start : start + len(ids)] = torch.from_numpy(ids).view(-1, 1, 1)
    tree.insert(KEY, ids, start)


def found(tree, text):
    """The beginning of a text that the tree has, read from where its keys lie."""
    parts = [tree.pool.k[0][start : start + n] for start, n in spans(tree.match(KEY, array(text)))]
    return "".join(chr(int(x)) for x in torch.cat(parts)[:, 0, 0]) if parts else ""


@pytest.fixture
def tree():
    model = deep(n_layer=1, n_head=1, n_query_groups=1, n_embd=2, head_size=2)
    return Prefixes(Pool(model, 40, torch.float32))


def test_texts_share_what_they_begin_with_and_split_where_they_differ(tree):
    for text in ("abcdef", "abcxy", "ab", "q", "abcdefgh"):
        kept(tree, text)
    assert tree.n_kept == len("abcdefxyqgh") and tree.pool.n_free == 40 - tree.n_kept
    for text in ("abcdefghi", "abcx!", "abc", "abd", "zq", "q", ""):
        want = max(
            (text[:n] for n in range(9) for known in ("abcdefgh", "abcxy", "q") if known.startswith(text[:n])), key=len
        )
        assert found(tree, text) == want
    assert found(tree, "abc") == "abc" and not tree.match(("other", False), array("abc"))


def test_the_least_recently_used_end_of_a_text_goes_first_and_what_others_begin_with_last(tree):
    for text in ("abcdef", "abcxy", "q"):
        kept(tree, text)
    tree.touch(tree.match(KEY, array("abcdef")))
    went = []
    while tree.evict():
        went.append([t for t in ("abcdef", "abcxy", "q", "abc") if found(tree, t) == t])
    assert went == [["abcdef", "q", "abc"], ["abcdef", "abc"], ["abc"], []]
    assert tree.pool.holes == [(0, 40)] and tree.n_kept == 0


def test_nodes_that_are_wanted_stay(tree):
    kept(tree, "abc")
    kept(tree, "xyz")
    ((node, _),) = tree.match(KEY, array("abc"))
    assert tree.evict(besides={node}) and not tree.evict(besides={node})
    assert found(tree, "abc") == "abc" and found(tree, "xyz") == ""
    assert tree.evict() and tree.n_kept == 0


def test_any_order_of_keeping_and_evicting_leaves_every_position_with_one_owner(tree):
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab") for _ in range(rng.randint(1, 9)))
        while tree.pool.take(0) is None or max((n for _, n in tree.pool.holes), default=0) < len(text):
            assert tree.evict()
        kept(tree, text)
        assert found(tree, text) == text
        owned = sorted([(n.start, len(n.ids)) for n in tree.nodes()] + tree.pool.holes)
        assert sum(n for _, n in owned) == 40
        assert all(a + n == b for (a, n), (b, _) in pairwise(owned))


def test_a_row_that_moves_is_still_what_another_begins_with(tokenizer):
    model = tiny("llama-gqa")
    ids = torch.randint(0, 320, (80,), generator=torch.Generator().manual_seed(1)).tolist()
    long = Request(ids[:30], 11, GREEDY)
    begins_alike = Request([*ids[:25], 7, 8, 9], 23, GREEDY)
    (want,) = Engine(model, tokenizer, max_tokens=60).complete([begins_alike])
    engine, found = Engine(model, tokenizer, max_tokens=120), []
    engine.submit(Request(ids[40:60], 2, GREEDY), lambda delta: None)  # 21 positions, soon free
    engine.submit(Request(ids[60:64], 27, GREEDY), lambda delta: None)  # 30 that stay
    engine.submit(long, lambda delta: None)  # 40 that stay, and 29 free
    for _ in range(4):
        engine.step()
    before = [row.start for row in engine.scheduler.running]
    engine.submit(begins_alike, found.append)  # 50: in one piece only once the others have moved
    engine.step()
    assert len(before) == 2 and [row.start for row in engine.scheduler.running[:2]] != before
    while engine.step():
        pass
    assert found[0].n_cached == 25
    assert [t.id for d in found for t in d.tokens] == [t.id for t in want.tokens]
