"""Many continuations of one prompt are scored as one row, each exactly as if it were alone."""

import pytest
import torch
from conftest import write_tokenizer
from scored_texts import KINDS, assert_scored, draw_ids, plain
from tiny import tiny

from lit_gpt.errors import UserError
from lit_gpt.fabric import make_fabric
from lit_gpt.generation.batching.branches import Branches
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import GREEDY, Request
from lit_gpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("dirty_memory")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def answers(seed):
    """Continuations of which some begin alike, one begins another, and some have one token."""
    a, b = draw_ids(9, seed=seed), draw_ids(6, seed=seed + 1)
    return tuple(map(tuple, (a, [*a[:4], *b], a[:5], b, [*b[:2], 7, 8], [b[0]], [3], [4], a)))


def assert_exact(model, request, answer):
    assert answer.finish == "length", answer.error
    for continuation, scored in zip(request.continuations, answer.continuations, strict=True):
        ids = [*request.ids, *continuation]
        assert_scored(scored, ids, plain(model, ids), len(request.ids), 0)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("lfm2", "qwen3.5")])
def test_continuations_get_the_plain_models_scores_in_chunks_beside_other_rows(kind, pack, tokenizer):
    model = tiny(kind)
    engine = Engine(model, tokenizer, max_rows=6, max_tokens=900, prefill_chunk=37, pack=pack)
    shots = draw_ids(40)
    texts = [[*shots, *draw_ids(n, seed=n)] for n in (1, 5, 17, 30)] + [draw_ids(1, seed=5), draw_ids(3, seed=6)]
    requests = [Request(ids, 0, continuations=answers(10 * i)) for i, ids in enumerate(texts)]
    others = [Request(draw_ids(20, seed=9), 10, GREEDY), Request([*shots, 1, 2], 0, prompt_logprobs=0)]
    found = engine.complete([*requests[:3], *others, *requests[3:]])
    for request, answer in zip(requests, [*found[:3], *found[5:]], strict=True):
        assert_exact(model, request, answer)
    assert_scored(found[4].prompt, others[1].ids, plain(model, others[1].ids), 0, 0)


def test_what_continuations_and_prompts_begin_alike_is_read_once_and_only_prompts_are_kept(tokenizer):
    model = tiny("llama-gqa")
    engine = Engine(model, tokenizer, max_rows=4, max_tokens=900, prefill_chunk=64)
    shots = draw_ids(60)
    requests = [Request([*shots, *draw_ids(8, seed=i)], 0, continuations=answers(20 * i)) for i in range(5)]
    for _ in range(2):
        for request, answer in zip(requests, engine.complete(requests), strict=True):
            assert_exact(model, request, answer)
    trees = [len(Branches(68, answers(20 * i)).ids) for i in range(5)]
    assert trees[0] == len({c[:k] for c in answers(0) for k in range(1, len(c))})
    once = 60 + sum(8 + tree for tree in trees)
    again = sum(1 + tree for tree in trees)  # the last token of each prompt, whose hidden state is not kept
    assert engine.stats().tokens_read == once + again
    assert engine.stats().tokens_kept == 60 + 5 * 8


def test_a_token_sees_what_is_before_it_in_its_own_continuation_alone():
    tree = Branches(2, [(5, 6, 7), (5, 8), (9,), (5, 6, 4)])
    assert tree.ids == [5, 6] and tree.positions.tolist() == [0, 1, 2, 3]
    assert [sorted(tree.targets(i)) for i in range(4)] == [[], [5, 9], [6, 8], [4, 7]]
    tree = Branches(1, [(5, 6, 7), (8, 9)])
    first, mask = tree.mask(0, 4, 0, torch.device("cpu"))
    assert first == 0 and (mask == 0).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    first, mask = tree.mask(2, 4, 2, torch.device("cpu"))  # the token at index 3 has position 1
    assert first == 0 and (mask == 0).int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


def test_a_row_with_continuations_that_is_cancelled_leaves_nothing_behind(tokenizer):
    engine = Engine(tiny("llama-gqa"), tokenizer, max_rows=2, max_tokens=200, prefill_chunk=16)
    request = Request(draw_ids(40), 0, continuations=answers(3))
    got = []
    ticket = engine.submit(request, got.append)
    for _ in range(3):
        engine.step()
    engine.cancel(ticket)
    while engine.step():
        pass
    stats = engine.stats()
    assert got[-1].finish == "cancelled" and stats.tokens_free + stats.tokens_kept == 200 and stats.tokens_kept <= 40


def test_a_continuation_that_does_not_fit_the_context_is_refused(tokenizer):
    model = tiny("llama-gqa", max_position_embeddings=64)
    engine = Engine(model, tokenizer, max_rows=2, max_tokens=300)
    fits = Request(draw_ids(60), 0, continuations=(tuple(draw_ids(5)), (1,)))
    assert_exact(model, fits, engine.complete([fits])[0])
    with pytest.raises(UserError, match="have 66 tokens, and the model has room for 64 and one more"):
        engine.complete([Request(draw_ids(60), 0, continuations=(tuple(draw_ids(6)),))])


@pytest.mark.parametrize("pack", [True, False])
def test_chunks_and_trees_are_read_where_the_precision_changes_the_default_dtype(pack, tokenizer):
    """`bf16-true` does: what is made without a dtype is in bf16 then, and masks have to be in that of the queries."""
    fabric = make_fabric("bf16-true", 1)
    model = tiny("llama-gqa").bfloat16()
    engine = Engine(model, tokenizer, max_tokens=400, prefill_chunk=16, autocast=fabric.autocast, pack=pack)
    ids = draw_ids(40)
    text, tree = Request([*ids, 5], 0, prompt_logprobs=0), Request(ids, 0, continuations=answers(0))
    for request, answer in zip((text, tree), engine.complete([text, tree]), strict=True):
        scored = answer.continuations or [answer.prompt[1:]]
        assert not answer.error and len(scored) == len(request.continuations or [0])
        assert all(-50 < s.logprob <= 0 for found in scored for s in found)


def test_layers_whose_state_has_no_branches_are_named(tokenizer):
    engine = Engine(tiny("lfm2"), tokenizer, max_rows=2, max_tokens=100, prefill_chunk=37)
    with pytest.raises(UserError, match="layers of kind conv read one text"):
        engine.complete([Request([1, 2], 0, continuations=answers(0))])
