"""The packed, lean, chunked step computes what the plain model does, and keeps what it says it keeps."""

import copy
import threading

import numpy as np
import pytest
import torch
from conftest import ALL
from parts import ONE_OF_EACH
from tiny import LENGTHS, assert_same, documents_of, gradients, kept_a_token, tiny

from lit_gpt.args import LoRAArgs, TrainArgs
from lit_gpt.data.batches import ahead, collate
from lit_gpt.data.packing import packs
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.fabric import make_fabric
from lit_gpt.layers import cpu_matmul as matmul
from lit_gpt.layers import dropout
from lit_gpt.layers.attention import Documents, Heads, PackedAttention, attended, attended_backward, blocks, split
from lit_gpt.methods import lora
from lit_gpt.training import loss as loss_module
from lit_gpt.training.graphs import filling
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import blocks_to_recompute, kept_by_wrappers, kept_values


@pytest.fixture
def few_logits(monkeypatch):
    """So few at a time that the tests' targets take several rounds."""
    monkeypatch.setattr(loss_module, "LOGITS", 16 * 320)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_gradients_are_those_of_each_document_alone(kind, method, few_logits):
    model = tiny(kind)
    if method == "lora":
        lora.inject(model, LoRAArgs(lora_r=3, lora_dropout=0.0, **ALL))
        for name, p in model.named_parameters():
            if lora.trainable(name):
                torch.nn.init.normal_(p, std=0.1)
    deep = 3e-5 if model.config.kv_shared_layers else 1e-5  # four layers with scores that nothing divides
    assert_same(model, documents_of(LENGTHS), deep)


@pytest.mark.parametrize("kind", ["llama-gqa", "neox", "gemma2", "smollm3", "gemma3", "gemma4"])
def test_blocks_that_are_computed_again_change_nothing(kind):
    model = tiny(kind)
    lora.inject(model, LoRAArgs(lora_r=3, lora_dropout=0.5, **ALL))
    batch = collate(documents_of(LENGTHS))
    results = []
    for n in (0, 1, 2):
        model.n_recomputed = n
        torch.manual_seed(3)
        results.append(gradients(model.train(), loss_sum(model, batch)))
    for other in results[1:]:
        for name, g in results[0].items():
            torch.testing.assert_close(other[name], g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("lengths", [(5, 230, 40), (3, 600)])
@pytest.mark.parametrize("missing", [(), (torch.bfloat16,)])
def test_attention_in_16_bits_is_within_rounding_of_that_in_32(softcap, window, groups, lengths, missing, monkeypatch):
    """Long and short documents take different paths there, and all take another on a CPU without such products."""
    monkeypatch.setattr(matmul, "MISSING", frozenset(missing))
    D, H = 16, 4
    heads = Heads((H * D, groups * D, groups * D), D, D**-0.5, softcap, window)
    documents = Documents.of(lengths)
    torch.manual_seed(0)
    T = sum(lengths)
    qkv = torch.randn(T, sum(heads.sizes))
    angle = torch.rand(T, 4).repeat(1, 2)
    dy = torch.randn(T, H * D)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        x = qkv.detach().to(dtype, copy=True).requires_grad_()
        y = PackedAttention.apply(x, angle.cos(), angle.sin(), documents, heads)
        y.backward(dy.to(dtype))
        results.append((y.float(), x.grad.float()))
    for got, want in zip(results[1], results[0], strict=True):
        assert (got - want).norm() / want.norm() < 1e-2


@pytest.mark.parametrize("kind", ["llama", "llama-gqa", "neox"])
@pytest.mark.parametrize("targets", [{}, {"lora_projection": True, "lora_mlp": True}])
@pytest.mark.parametrize("variant", [{}, {"lora_dora": True, "lora_init": "pissa"}])
def test_what_a_block_keeps_is_what_the_count_says(kind, targets, variant):
    """6 n_embd + 2 intermediate values a token for a Llama with all linear layers adapted; 5 and 1 for a NeoX."""
    kept = {}
    for n_layer in (3, 4):
        model = tiny(kind, num_hidden_layers=n_layer).train()
        lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.5, **targets, **variant))
        kept[n_layer] = kept_a_token(model)
    c, r = model.config, 4 if variant else 2
    per_block = kept[4] - kept[3]
    wanted = kept_values(c)
    if kind == "llama":
        assert wanted == 6 * c.n_embd + 2 * c.intermediate_size
    if kind == "neox":
        assert wanted == 5 * c.n_embd + c.intermediate_size
    h = r * (2 + (1 + 3 if kind != "neox" else 1 + 2) * bool(targets))  # A x of each adapted layer
    assert kept_by_wrappers(model) == h
    statistics = c.n_head + (4 if kind == "neox" else 0)  # logsumexp; mean and deviation of layer norms
    norms = sum(m.numel() for n, m in model.named_parameters() if ".h.0." in n and "magnitude" in n) / 64
    seeds = 1.0
    assert wanted + h <= per_block <= wanted + h + statistics + norms + seeds


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
@pytest.mark.parametrize("experts_train", [False, True])
def test_what_a_mixture_keeps_is_what_the_count_says(kind, experts_train):
    kept = {}
    for n_layer in (3, 4):
        model = tiny(kind, num_hidden_layers=n_layer).train()
        lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=0.0, lora_mlp=experts_train))
        kept[n_layer] = kept_a_token(model)
    c = model.config
    wanted = kept_values(c) + kept_by_wrappers(model)
    wanted -= 0 if experts_train else c.n_expert_per_token * c.n_embd  # the rows that are handed out
    # logsumexp; means of squares; scores of a token's experts, their order and its inverse, and which they are
    assert wanted <= kept[4] - kept[3] <= wanted + c.n_head + 5 * c.n_expert_per_token + c.n_query_groups


def test_packs_hold_each_sample_once_and_no_more_tokens_than_asked_for():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 200)
    lengths[7] = 500
    chosen = rng.permutation(200)[:128]
    groups = packs(lengths, chosen, 128)
    assert sorted(i for g in groups for i in g) == sorted(chosen.tolist())
    assert all(lengths[g].sum() <= 128 or len(g) == 1 for g in groups)
    assert len(groups) <= -(-lengths[chosen].sum() // 128) + 4  # nearly as few as could be
    assert packs(np.array([6, 5, 4, 3, 2]), range(5), 10) == [[0, 2], [1, 3, 4]]  # the fullest that has room


def test_a_samples_first_token_is_never_a_target():
    ids = np.arange(1, 6, dtype=np.int32)
    batch = collate([(ids, ids), (ids + 10, ids + 10)])
    assert batch.targets.tolist() == [2, 3, 4, 5, 12, 13, 14, 15]
    assert batch.predicting.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.documents.positions.tolist() == [0, 1, 2, 3] * 2


def test_nothing_is_computed_after_the_token_that_predicts_the_last_target():
    ids = np.arange(1, 9, dtype=np.int32)
    targets = ((), (0,), (1,), (2, 5), (7,))
    samples = [(ids + 10 * i, np.where(np.isin(np.arange(8), t), ids + 10 * i, IGNORE)) for i, t in enumerate(targets)]
    samples.append((ids[:1], ids[:1]))
    data = stack([(ids.tolist(), labels.tolist()) for ids, labels in samples])
    assert data.computed.tolist() == [1, 1, 1, 5, 7, 1]
    batch = collate([data[i] for i in range(6)])
    assert batch.ids.tolist() == [1, 11, 21, 31, 32, 33, 34, 35, *range(41, 48), 1]
    assert batch.predicting.tolist() == [2, 4, 7, 14] and batch.targets.tolist() == [22, 33, 36, 48]
    assert (batch.n_tokens, batch.n_computed, batch.documents.whole) == (41, 16, (8, 8, 8, 8, 8, 1))


def test_without_a_target_the_loss_is_zero():
    model = tiny("llama")
    lora.inject(model, LoRAArgs())
    ids = np.arange(1, 6, dtype=np.int32)
    loss = loss_sum(model, collate([(ids, np.full(5, IGNORE, np.int32))]))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("kind", ["llama-gqa", "gemma2"])
def test_the_loss_is_fp32_where_fabric_makes_new_tensors_bf16(kind):
    """What a forward pass under `bf16-true` makes on its way is bf16 unless it says otherwise."""
    fabric = make_fabric("bf16-true", seed=1)
    model, batch = tiny(kind).bfloat16(), collate(documents_of(LENGTHS))
    blocks.layout.cache_clear()
    plain = loss_sum(model, batch)
    blocks.layout.cache_clear()
    with fabric.autocast():
        assert torch.get_default_dtype() == torch.bfloat16
        loss = loss_sum(model, batch)
    blocks.layout.cache_clear()
    assert loss.dtype == torch.float32 and torch.equal(loss, plain)


def test_batches_for_a_cpu_are_made_without_a_thread():
    """Beside a second thread that uses torch, OpenMP's threads take a quarter longer for each step."""
    steps = [[collate(documents_of(LENGTHS))], [collate(documents_of((3, 4)))]]
    before = threading.active_count()
    coming = ahead(iter(steps), torch.device("cpu"))
    assert [next(coming)[0].n_tokens, threading.active_count()] == [sum(LENGTHS), before]
    assert [b[0].n_tokens for b in coming] == [7]


def test_recompute_asks_for_all_or_no_blocks_on_a_cpu():
    model = tiny("llama")
    device = torch.device("cpu")
    assert [blocks_to_recompute(model, TrainArgs(recompute=r), 64, device) for r in ("none", "auto", "all")] == [
        0,
        0,
        2,
    ]


def test_training_with_copies_of_a_model_is_the_same_packed_or_not():
    """Deep copies keep working: a block holds no state of a call."""
    model = tiny("llama-gqa")
    samples = documents_of(LENGTHS)
    loss = loss_sum(model, collate(samples))
    assert torch.equal(loss_sum(copy.deepcopy(model), collate(samples)), loss)


@pytest.mark.parametrize("how", [dropout.dropped, dropout.hashed])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_is_independent_and_unbiased_and_the_same_for_the_same_seed(how, p):
    x = torch.ones(1000, 256)
    a, b = (how(x, torch.tensor([seed]), p) for seed in (1, 2))
    assert torch.equal(a, how(x, torch.tensor([1]), p))
    zero_a, zero_b = (a == 0).float(), (b == 0).float()
    n = x.numel() ** 0.5
    assert abs(zero_a.mean() - p) < 5 / n and abs((zero_a * zero_b).mean() - p * p) < 5 / n
    assert abs(a.mean() - 1) < 10 * (p / (1 - p)) ** 0.5 / n
    keyed = how(x, torch.tensor([1]), p, torch.randint(2**31 - 1, (1000,)).int())
    assert abs((keyed == 0).float().mean() - p) < 10 / n  # windows may overlap: the places are not all independent
    assert torch.equal(
        how(x[:2], torch.tensor([1]), p, torch.tensor([5, 5]).int())[0] == 0,
        how(x[:1], torch.tensor([1]), p, torch.tensor([5]).int())[0] == 0,
    )
    keys = torch.tensor([*torch.randperm(2**18)[:999].tolist(), 0]).int()
    keyed = how(x, torch.tensor([1]), p, keys)
    assert abs((keyed == 0).float().mean() - p) < 10 / n  # rows may overlap: the places are not all independent
    assert torch.equal(keyed.flip(0), how(x, torch.tensor([1]), p, keys.flip(0)))
    for shift in (1, 256, 257):  # no place tells about another
        pairs = zero_a.flatten()[shift:] * zero_a.flatten()[:-shift]
        assert abs(pairs.mean() - p * p) < 5 / n


def test_a_micro_batch_goes_to_the_smallest_recording_and_fills_it():
    sizes = [256, 128, 64, 32]
    assert filling((100, 28), sizes, 8, 100) == (1, ())
    assert filling((100, 27), sizes, 8, 100) == (1, (1,))
    assert filling((5, 5), sizes, 8, 100) == (3, (22,))
    assert filling((100, 29), sizes, 8, 50) is None  # a document longer than was recorded
    assert filling((200, 57), sizes, 8, 300) is None  # more tokens than was recorded
    assert filling((1,) * 8, sizes, 8, 100) is None  # no slot is left for what fills up
    assert filling((4,) * 8, sizes, 8, 100) == (3, ())
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = tuple(int(n) for n in rng.integers(1, 60, rng.integers(1, 9)))
        found = filling(lengths, sizes, 12, 60)
        if found is not None:
            which, padding = found
            assert sum(lengths) + sum(padding) == sizes[which] and len(lengths) + len(padding) <= 12
            assert max(padding, default=0) <= 60 and all(sizes[i] < sum(lengths) for i in range(which + 1, 4))


ROWS = (
    ((33, 30, 20, 12, 12, 7, 5, 1, 1), ()),
    ((5,), ()),
    ((1, 40, 3, 200, 90, 80), ()),
    ((9, *[4] * 40), (40,)),
    ((30, 7, 5, 6, 70, 1, 9, 12, 3), (3, 1)),
    ((2, 180, 1), (1,)),
)
"""Lengths and `n_sharing`: similar and very different documents, alone, and behind prefixes of one and of many."""


@pytest.fixture(params=[None, blocks._Limits(queries=16, scores=12_000, wasted=400)], ids=["usual", "few at once"])
def limits(request, monkeypatch):
    """The usual limits of groups on a CPU, and others that cut documents into parts, and rows into many groups."""
    if request.param is not None:
        monkeypatch.setattr(blocks, "_ON_CPU", request.param)
    blocks.layout.cache_clear()
    yield request.param
    blocks.layout.cache_clear()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("window", [0, 6, 50])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_documents_side_by_side_are_documents_alone(softcap, window, groups, has_sinks, limits):
    """Against scores of all tokens at once, with a mask, and autograd."""
    D, H = 8, 4
    heads = Heads((H * D, groups * D, groups * D), D, 0.3, softcap, window)
    sinks = torch.randn(H, requires_grad=True) if has_sinks else None
    for lengths, n_sharing in ROWS:
        documents, T = Documents.of(lengths, n_sharing), sum(lengths)
        qkv, dy = torch.randn(T, sum(heads.sizes), requires_grad=True), torch.randn(T, H, D)
        seen = torch.zeros(T, T, dtype=torch.bool)
        for own, prefix in documents.pieces():
            tokens = torch.tensor([*(range(prefix.start, prefix.stop) if prefix else ()), *range(own.start, own.stop)])
            distance = documents.positions[tokens][:, None] - documents.positions[tokens]
            of_all = (distance >= 0) & (distance < (window or T))
            seen[own] = seen[own].index_copy(1, tokens, of_all[len(tokens) - (own.stop - own.start) :])
        q, k, v = split(qkv, heads)
        scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(H // groups, 1)) * 0.3
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        scores = scores.masked_fill(~seen, -torch.inf)
        beside = torch.full((H, T, 1), -torch.inf) if sinks is None else sinks[:, None, None].expand(H, T, 1)
        p = torch.cat((scores, beside), -1).softmax(-1)[..., :-1]
        want = torch.einsum("hts,shd->thd", p, v.repeat_interleave(H // groups, 1))
        given = (qkv,) if sinks is None else (qkv, sinks)
        gradients = torch.autograd.grad(want, given, dy)
        with torch.no_grad():
            y, *kept = attended(qkv, documents, heads, sinks)
            found = attended_backward(dy, qkv, y, *kept, documents=documents, heads=heads, sinks=sinks)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat(found[:3], 1).flatten(1), gradients[0], rtol=1e-4, atol=2e-5)
        if sinks is not None:
            torch.testing.assert_close(found[3], gradients[1], rtol=1e-4, atol=2e-5)


def test_groups_hold_similar_documents_and_a_bounded_number_of_scores(limits):
    """One group where that wastes less than a second one would cost; a document with its prefix, and the prefix too."""
    heads, kind = Heads((32, 8, 8), 8, 0.3), (torch.float32, torch.device("cpu"))
    layout = blocks.layout((47, 52, 51, 50, 48), (4,), heads=heads, most=1000, kind=kind)
    alike = blocks.layout((16,) * 20, (), heads=heads, most=1000, kind=kind)
    if limits is None:
        assert [g.size for g in layout.groups] == [(5, 52, 99)] and layout.order is None
        assert [len(s[2]) for s in layout.groups[0].shared] == [1] and len(alike.groups) == 1
        apart = blocks.layout((3, 700), (), heads=heads, most=1000, kind=kind)
        assert all(n * H * S <= 2**20 // 4 for n, H, S in (g.size for g in apart.groups)) and len(apart.groups) > 1
    else:
        assert all(g.size[1] <= 16 for g in layout.groups) and layout.order is not None
        assert [g.size[0] for g in alike.groups] == [11, 9]  # 12,000 scores of 4 heads are 11 documents
