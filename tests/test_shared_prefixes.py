"""A prefix that samples share is computed once, and the step stays what it is without."""

import copy
import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ALL
from parts import ONE_OF_EACH
from tiny import gradients, plain_loss, tiny

from lit_gpt.args import AdapterArgs, LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.data.batches import Order, micro_batches, steps
from lit_gpt.data.packing import Packing, cuts, n_computed, packs, prefixes_of
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.fabric import make_fabric
from lit_gpt.layers.attention import Documents, Heads, SharedPrefixes, attended, attended_backward, attention, flash
from lit_gpt.methods import adapter, lora
from lit_gpt.training import batching as packing
from lit_gpt.training.batching import packing_of, share_up_to
from lit_gpt.training.graphs import prefixes_fit
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.validation import validate

STYLES = ((0, 20), (20, 37))
"""Of a string of tokens, the parts that samples begin with."""


def styled(n=24, seed=0, longest=14):
    """Samples that begin as one style or the other or as nothing, with targets at their end."""
    rng = np.random.default_rng(seed)
    tokens, samples = rng.integers(0, 320, 40), []
    for i in range(n):
        start, stop = (*STYLES, (0, 0))[i % 3]
        prompt, answer = rng.integers(0, 320, rng.integers(1, longest)), rng.integers(0, 320, rng.integers(1, longest))
        ids = [*tokens[start:stop], *prompt, *answer]
        samples.append((ids, [IGNORE] * (len(ids) - len(answer)) + ids[-len(answer) :]))
    return samples


def arrays(samples):
    return [tuple(np.array(x, dtype=np.int32) for x in sample) for sample in samples]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("method", ["lora", "full", "adapter"])
def test_loss_and_gradients_are_those_of_each_sample_alone(kind, method):
    model = tiny(kind)
    model.config.block_size = max(model.config.block_size, 64)
    if method == "lora":
        lora.inject(model, LoRAArgs(lora_r=3, lora_dropout=0.0, **ALL))
    if method == "adapter":
        adapter.inject(model, AdapterArgs(adapter_prompt_length=4, adapter_start_layer=1))
    for p in model.parameters():
        if p.requires_grad and not p.abs().sum():
            torch.nn.init.normal_(p, std=0.1)
    samples = styled(12)
    longrope = (model.config.rope_scaling or {}).get("type") == "longrope"
    up_to = share_up_to(model.config, TrainArgs()) if longrope else 1000  # on a CPU, windows are no limit
    (batch,) = micro_batches(stack(samples), range(12), Packing(10_000, up_to))
    assert batch.n_computed < batch.n_tokens or longrope
    want = plain_loss(model, arrays(samples))
    want_gradients = gradients(model, want)
    got = loss_sum(model, batch)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for name, g in gradients(model, got).items():
        size = want_gradients[name].abs().max() + 1e-6
        # keys of unit length: rounding of short ones is magnified; Gemma 4 is 2e-5 off with AVX2
        atol = 1e-4 if model.config.mixers else 5e-5 if kind == "gemma4" else 1e-5
        torch.testing.assert_close(g / size, want_gradients[name] / size, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("long", [False, True])
def test_attention_of_what_goes_on_from_a_prefix_is_that_of_the_whole(window, softcap, groups, dtype, long):
    """Long and short documents take different paths on a CPU."""
    heads = Heads((32, 8 * groups, 8 * groups), 8, 0.3, softcap, window)
    lengths, n_sharing = (6, 300 if long else 17, 3, 40, 5, 9, 1, 12), (3, 2)
    row, alone, twice, again = laid_out(lengths, n_sharing)
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), sum(heads.sizes)).to(dtype)
    dy = torch.randn(sum(lengths), 4, 8).to(dtype)
    y, *kept = attended(qkv, row, heads)
    got = [y[twice], *attended_backward(dy, qkv, y, *kept, documents=row, heads=heads)]
    y, *kept = attended(qkv[twice], alone, heads)
    dy = dy[twice].masked_fill(again[:, None, None], 0)
    parts = attended_backward(dy, qkv[twice], y, *kept, documents=alone, heads=heads)
    sums = [torch.zeros(len(qkv), *p.shape[1:]).index_add_(0, twice, p.float()) for p in parts]
    for a, b in zip(got, [y, *sums], strict=True):
        assert (a.float() - b.float()).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * b.float().norm()


def laid_out(lengths, n_sharing):
    """A row with shared prefixes, the same documents alone, each of their tokens' place in the row, and which of those
    stood there before."""
    row = Documents.of(lengths, n_sharing)
    alone = Documents.of(row.whole)
    twice, seen = [], set()
    for piece, prefix in list(row.pieces())[len(n_sharing) :]:
        twice += [*range(*prefix.indices(10**6)), *range(*piece.indices(10**6))] if prefix else range(10**6)[piece]
    again = torch.tensor([bool(t in seen or seen.add(t)) for t in twice])
    return row, alone, torch.tensor(twice), again


def test_positions_and_lengths_are_those_of_the_documents():
    row, alone, twice, _ = laid_out((6, 4, 3, 2, 5, 7), (2, 1))
    assert row.whole == (9, 8, 9, 7) and row.n_sharing == (2, 1)
    assert torch.equal(row.positions[twice], alone.positions)


def test_batches_hold_each_sample_once_and_prefixes_once():
    samples = styled(60, longest=40)
    data = stack(samples)
    for size in (60, 128, 500):
        batches = micro_batches(data, range(60), Packing(size, 1000))
        assert sum(b.n_samples for b in batches) == 60 and sum(b.n_tokens for b in batches) == len(data.ids)
        assert sum(b.n_targets for b in batches) == data.n_targets
        assert all(b.n_computed <= size or b.n_samples == 1 for b in batches)
        alone = micro_batches(data, range(60), Packing(size))
        assert len(batches) <= len(alone)
        left = sum(b.n_computed for b in batches) / sum(b.n_computed for b in alone)
        assert left < {60: 1, 128: 0.9, 500: 0.85}[size]  # where few fit beside each other, few can share
        found = []
        for b in batches:
            targets = dict(zip(b.predicting.tolist(), b.targets.tolist(), strict=True))
            for piece, prefix in list(b.documents.pieces())[len(b.documents.n_sharing) :]:
                assert all(b.ids[p + 1] == targets[p] for p in range(piece.start, piece.stop - 1) if p in targets)
                last = targets[piece.stop - 1]  # which is not computed
                found.append((*(b.ids[prefix].tolist() if prefix else ()), *b.ids[piece].tolist(), last))
        assert sorted(found) == sorted(tuple(ids[: n + 1]) for (ids, _), n in zip(samples, data.computed, strict=True))


def test_a_step_has_the_same_samples_shared_or_not():
    data = stack(styled(30))
    for size in (64, 1000):
        both = [list(steps(data, Order(30, 60, 7), 8, Packing(size, up_to))) for up_to in (0, 1000)]
        for a, b in zip(*both, strict=True):
            assert sorted(t for x in a for t in x.targets.tolist()) == sorted(t for x in b for t in x.targets.tolist())


def test_runs_of_neighbours_are_cut_where_it_saves_most():
    def saved(runs):
        return sum((last - first - 1) * n for first, last, n in runs)

    assert sorted(cuts([33, 34, 8, 24, 40])) == [(0, 3, 33), (3, 6, 24)]
    assert cuts([15, 15, 15]) == [] and cuts([]) == []
    assert cuts([100, 20, 20, 20]) == [(0, 2, 100)] or saved(cuts([100, 20, 20, 20])) >= 100
    rng = np.random.default_rng(0)

    def best(common):
        """By trying every way to cut."""
        most = 0
        for mask in range(2 ** len(common)):
            at = [0, *(i + 1 for i in range(len(common)) if mask >> i & 1), len(common) + 1]
            runs = [(a, b, min(common[a : b - 1], default=0)) for a, b in itertools.pairwise(at)]
            most = max(most, saved(r for r in runs if r[2] >= 16))
        return most

    for _ in range(60):
        common = rng.integers(10, 60, rng.integers(1, 9)).tolist()
        runs = cuts(common)
        assert saved(runs) == best(common)
        assert all(min(common[a : b - 1]) == n for a, b, n in runs)


def test_nothing_is_shared_that_carries_loss_or_saves_little():
    ids = list(range(40))
    everywhere = stack([(ids, ids), (ids, ids)])
    assert not prefixes_of(everywhere, range(2), Packing(100, 100))
    late = [IGNORE] * 30 + ids[30:]
    (prefix,) = set(prefixes_of(stack([(ids, late), (ids, late)]), range(2), Packing(100, 100)).values())
    assert prefix.n_tokens == 29  # the next one predicts a target, which may be another in each sample
    without = [IGNORE] * 40
    assert not prefixes_of(stack([(ids, without), (ids, without)]), range(2), Packing(100, 100)), "one token each"
    assert not prefixes_of(stack([(ids, late), (ids, late)]), range(2), Packing(100, 39))
    long = [([*ids, *(1000 * i + np.arange(900)).tolist()], [*late, *[1] * 900]) for i in range(2)]
    assert not prefixes_of(stack(long), range(2), Packing(10_000, 10_000))


def test_packs_count_a_prefix_once_in_each_group():
    data = stack(styled(60, longest=40))
    prefixes = prefixes_of(data, range(60), Packing(128, 1000))
    for group in packs(data.computed, range(60), 128, prefixes):
        (batch,) = micro_batches(data, group, Packing(10_000, 1000))
        assert n_computed(data.computed, group, prefixes) <= 128 or len(group) == 1
        assert batch.n_computed <= n_computed(data.computed, group, prefixes)


@pytest.mark.parametrize("kind", ["llama", "mistral", "phi3-long", "gemma2"])
def test_prefixes_are_shared_as_far_as_they_do_not_depend_on_the_whole(kind):
    config = tiny(kind).config
    longest = share_up_to(config, TrainArgs())
    assert 0 < longest <= config.block_size
    assert not config.sliding_window or longest <= config.sliding_window
    if kind == "phi3-long":
        assert longest == config.rope_scaling["original_max_position_embeddings"] < config.block_size
    for args in (TrainArgs(share_prefixes=False), TrainArgs(packing=False), TrainArgs(neftune_alpha=5.0)):
        assert share_up_to(config, args) == 0
    model = tiny(kind)
    assert packing_of(model, TrainArgs(), torch.device("cpu")) == Packing(512, longest)
    assert packing_of(model, TrainArgs(micro_batch_tokens=99), torch.device("cpu"), 64) == Packing(64, longest)


def test_a_run_whose_samples_share_nothing_makes_no_room_for_it():
    rng = np.random.default_rng(0)
    apart = [(ids, ids) for ids in (rng.integers(0, 320, 40).tolist() for _ in range(30))]
    for samples, shares in ((styled(30), True), (apart, False)):
        data, train = stack(samples), TrainArgs(batch_size=8, epochs=1)
        loader = BatchLoader(tiny("llama"), data, train, torch.device("cpu"), 1, nullcontext)
        loader.prepare()
        assert (loader.packing.share_up_to > 0) == shares
        assert any(b.documents.n_sharing for b in loader.batches(1)) == shares


def test_validation_is_the_same_shared_or_not():
    fabric, model, data = make_fabric("32-true", seed=1), tiny("llama"), stack(styled(30))
    losses = [validate(fabric, model, data, TrainArgs(share_prefixes=s), ValidationArgs()) for s in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class Kernels:
    """What torch's flash kernels on a GPU do, in plain torch, with NaN where they promise nothing.

    Source: torch/nn/attention/varlen.py of torch 2.13 for shapes, and for the logsumexp, (heads, tokens).
    """

    @staticmethod
    def pairs(q, k, o_q, o_k, causal, left):
        seen = torch.zeros(len(q), len(k), dtype=torch.bool)
        for (a, b), (c, d) in zip(
            zip(o_q.tolist(), o_q.tolist()[1:], strict=False), zip(o_k.tolist(), o_k.tolist()[1:], strict=False),
            strict=True,
        ):  # fmt: skip
            distance = (torch.arange(b - a)[:, None] + (d - c) - (b - a)) - torch.arange(d - c)
            seen[a:b, c:d] = ((distance >= 0) & (distance <= left if left is not None else True)) if causal else True
        return seen

    @classmethod
    def scores(cls, q, k, o_q, o_k, causal, scale, left):
        k = k.repeat_interleave(q.size(1) // k.size(1), 1)
        seen = cls.pairs(q, k, o_q, o_k, causal, left)
        return torch.einsum("thd,shd->hts", q, k).mul(scale).masked_fill(~seen, -torch.inf), seen

    @classmethod
    def _flash_attention_forward(
        cls, q, k, v, o_q, o_k, most_q, most_k, p, causal, debug, *, scale, window_size_left=None,
        window_size_right=None,
    ):  # fmt: skip
        assert int(o_q.diff().max()) <= most_q and int(o_k.diff().max()) <= most_k and p == 0.0
        scores, seen = cls.scores(q, k, o_q, o_k, causal, scale, window_size_left)
        lse = scores.logsumexp(-1)
        values = v.repeat_interleave(q.size(1) // v.size(1), 1)
        y = torch.einsum("hts,shd->thd", (scores - lse[..., None]).exp(), values)
        blind = ~seen.any(1)
        return y.masked_fill(blind[:, None, None], torch.nan), lse.masked_fill(blind, torch.inf), *torch.zeros(3, 2)

    @classmethod
    def _flash_attention_backward(
        cls, dy, q, k, v, y, lse, o_q, o_k, most_q, most_k, p, causal, state, unused, *, scale, window_size_left=None,
        window_size_right=None,
    ):  # fmt: skip
        scores, seen = cls.scores(q, k, o_q, o_k, causal, scale, window_size_left)
        times = q.size(1) // k.size(1)
        keys, values = (x.repeat_interleave(times, 1) for x in (k, v))
        p = (scores - lse[..., None]).exp()
        ds = p * (torch.einsum("thd,shd->hts", dy, values) - (dy * y).sum(-1).mT[..., None]) * scale
        dq = torch.einsum("hts,shd->thd", ds, keys)
        dk, dv = torch.einsum("hts,thd->shd", ds, q), torch.einsum("hts,thd->shd", p, dy)
        dk, dv = (x.unflatten(1, (k.size(1), times)).sum(2) for x in (dk, dv))
        unread = (torch.arange(len(k)) >= int(o_k[-1]))[:, None, None]
        dq = dq.masked_fill(~seen.any(1)[:, None, None], torch.nan)
        return dq, dk.masked_fill(unread, torch.nan), dv.masked_fill(unread, torch.nan)


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(flash, "aten", Kernels)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize(
    ("lengths", "n_sharing"), [((6, 17, 3, 40, 5, 9, 1, 12), (3, 2)), ((20, 7, 9), (2,)), ((9, 3), ())]
)
@pytest.mark.parametrize("recorded", [False, True])
def test_what_a_gpu_does_in_two_parts_is_attention(kernels, groups, window, lengths, n_sharing, recorded):
    """The code around the kernels, on kernels that do what torch's are documented to do; and in a recording's row,
    which has room for more."""
    heads = Heads((32, 8 * groups, 8 * groups), 8, 0.3, 0.0, window)
    row, T = Documents.of(lengths, n_sharing), sum(lengths)
    torch.manual_seed(0)
    q, k, v, dy = (torch.randn(T, n, 8) for n in (4, groups, groups, 4))
    want, *kept = attended(torch.cat([x.flatten(1) for x in (q, k, v)], 1), row, heads)
    want_gradients = attended_backward(
        dy, torch.cat([x.flatten(1) for x in (q, k, v)], 1), want, *kept, documents=row, heads=heads
    )
    if recorded:
        size = T + 60
        room = SharedPrefixes.empty(size, 4, 50, torch.device("cpu"))
        assert prefixes_fit(row, SimpleNamespace(shared_prefixes=room))
        room.copy(Documents.of((5, 4, 3, 2), (1, 1)).shared_prefixes)  # what was there before
        room.copy(row.shared_prefixes)
        row = Documents((*lengths, 60), torch.tensor([*row.offsets.tolist(), size]).int(), row.positions, (), room)
        q, k, v, dy = (torch.cat((x, torch.randn(60, *x.shape[1:]))) for x in (q, k, v, dy))
    y, *kept = flash.flash(q, k, v, row, heads)
    torch.testing.assert_close(y[:T], want, rtol=1e-4, atol=1e-5)
    for a, b in zip(flash.flash_backward(dy, q, k, v, y, *kept, row, heads), want_gradients, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a[:T], b, rtol=1e-4, atol=1e-5)


def refusing(x):
    raise RuntimeError("no such kernel\nfor this")


WRONG = {"a little off": lambda x: x * 1.2, "no number": lambda x: x * torch.nan, "refused": refusing}


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", ["_flash_attention_forward", "_flash_attention_backward"])
@pytest.mark.parametrize("how", [None, *WRONG])
def test_a_gpu_is_tried_before_it_is_relied_on(kernels, groups, kernel, how, monkeypatch, capsys):
    """With kernels that are right, or wrong about the keys of a prefix alone."""
    monkeypatch.setattr(packing, "flash_can", lambda qkv, heads: True)
    monkeypatch.setattr(attention, "flash_can", lambda qkv, heads: True)
    right = getattr(Kernels, kernel)

    def wrong(*args, **kwargs):
        first, *others = right(*args, **kwargs)
        causal = args[8 if "forward" in kernel else 11]
        return first if how is None or causal else WRONG[how](first), *others

    monkeypatch.setattr(Kernels, kernel, wrong)
    heads = Heads((32, 8 * groups, 8 * groups), 8, 0.3)
    packing.can_share.cache_clear()
    with make_fabric("bf16-true", seed=1).autocast():  # new tensors are bf16 there
        assert packing.can_share(heads, torch.bfloat16, torch.device("cpu")) == (how is None)
    packing.can_share.cache_clear()
    said = capsys.readouterr().out
    assert said == "" if how is None else said.startswith("Prefixes are not shared: ") and said.count("\n") == 1


def test_a_recording_refuses_prefixes_that_it_has_no_room_for():
    room = SimpleNamespace(shared_prefixes=SharedPrefixes.empty(200, 2, 40, torch.device("cpu")))
    assert prefixes_fit(Documents.of((30, 5, 5), (2,)), room) and prefixes_fit(Documents.of((30, 5)), room)
    assert not prefixes_fit(Documents.of((30, 21, 5, 5, 5, 5), (2, 2)), room)  # more than a quarter of the row
    assert not prefixes_fit(Documents.of((41, 5, 5), (2,)), room)  # longer than was recorded
    assert not prefixes_fit(Documents.of((4, 4, 4, 5, 5, 5, 5, 5, 5), (2, 2, 2)), room)
    assert not prefixes_fit(Documents.of((30, 5, 5), (2,)), SimpleNamespace(shared_prefixes=None))


def test_a_recording_forgets_the_prefixes_of_the_row_before():
    room, fresh = (SharedPrefixes.empty(50, 4, 20, torch.device("cpu")) for _ in range(2))
    room.copy(Documents.of((5, 4, 3, 2), (1, 1)).shared_prefixes)
    assert room.keys.any() and room.after_prefix.any()
    room.copy(None)
    assert all(torch.equal(getattr(room, n), getattr(fresh, n)) for n in ("queries", "keys", "after_prefix"))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_dropout_is_drawn_by_the_text_and_not_by_the_micro_batch(kind):
    """Alone, packed, and with its prefix shared, a sample loses the same: the loss of the step is the same."""
    model = tiny(kind)
    lora.inject(model, LoRAArgs(lora_r=3, lora_dropout=0.5, **ALL))
    for name, p in model.named_parameters():
        if lora.trainable(name):
            torch.nn.init.normal_(p, std=0.1)
    rows = [[*range(1, 25), *end] for end in ((30, 31), (32, 33, 34), (35,))] + [[7, 8, 9, 10]]
    data = stack([(ids, [IGNORE] * (len(ids) - 1) + ids[-1:]) for ids in rows])
    losses = []
    for seed, how in ((1, Packing(100, 100)), (1, Packing(100)), (1, Packing(1)), (2, Packing(100))):
        model.draws.begin(seed, 1, torch.device("cpu"))
        batches = micro_batches(data, range(4), how)
        assert len(batches) == (4 if how.max_tokens == 1 else 1)
        assert sum(batch.n_computed for batch in batches) == (32 if how.share_up_to else 78)
        losses.append(sum(loss_sum(model.train(), batch).item() for batch in batches))
    assert losses[:3] == pytest.approx([losses[0]] * 3, rel=1e-5) and abs(losses[3] / losses[0] - 1) > 1e-3


def test_dropout_is_drawn_once_for_a_shared_prefix_and_apart_for_what_follows():
    model = tiny("llama")
    lora.inject(model, LoRAArgs(lora_r=3, lora_dropout=0.5, **ALL))
    for name, p in model.named_parameters():
        if lora.trainable(name):
            torch.nn.init.normal_(p, std=0.1)
    data = stack([(ids, [IGNORE] * 31 + ids[31:]) for ids in ([*range(30), 7, 8, 9], [*range(30), 4, 5, 6])])
    (batch,) = micro_batches(data, range(2), Packing(100, 100))
    assert batch.documents.lengths == (30, 2, 2)
    hidden = copy.deepcopy(model).train().hidden(batch.ids[None], documents=batch.documents)[0]
    assert not torch.equal(hidden[30:32], hidden[32:34])
    assert len(set(batch.documents.keys.tolist())) == 34, "each token has a key of its own"
