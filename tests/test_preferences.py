"""Learning from preferences: log-probabilities, references, losses, and runs that resume bit for bit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VARIANTS
from runs import trained
from tiny import TINY, gradients, tiny

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.data.answers import grouped, judged_alone, with_others
from lit_gpt.data.batches import batch_of, micro_batches
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.lightning import Fabric
from lit_gpt.methods import METHODS
from lit_gpt.model import GPT
from lit_gpt.report.metrics import PAIR_FIGURES, read_metrics
from lit_gpt.training.log_probs import answer_log_probs, target_log_probs
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.preferences.losses import LOSSES, Pairs, dpo, ipo, kto, orpo, simpo
from lit_gpt.training.preferences.objective import objective_of
from lit_gpt.training.preferences.reference import ReferenceStore, known_references, made_of


def make_pairs(n, seed=0, largest=60, longest=20):
    """Pairs of answers to prompts of different lengths, some of them without anything in common but the prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        prompt = rng.integers(1, largest, int(rng.integers(1, longest))).tolist()
        for _ in range(2):
            answer = rng.integers(1, largest, int(rng.integers(1, 12))).tolist()
            rows.append((prompt + answer, [IGNORE] * len(prompt) + answer))
    return grouped(stack(rows), np.arange(0, 2 * n + 1, 2))


def plain_log_probs(model, data):
    """Each answer by itself, all logits at once."""
    found = []
    for a in range(data.n_answers):
        ids, labels = (torch.from_numpy(np.asarray(x).astype(np.int64)) for x in data.answer(a))
        logs = model(ids[None])[0, :-1].float().log_softmax(-1)
        kept = labels[1:] != IGNORE
        found.append(logs[kept].gather(-1, labels[1:][kept][:, None]).sum())
    return torch.stack(found)


def in_order(values, batches):
    """The values of all batches' answers in the order of the data."""
    order = torch.tensor([a for batch in batches for a in batch.answers])
    return torch.cat(values)[order.argsort()]


def prepared_with(model, method, **flags):
    args = {"lora": LoRAArgs, "full": FullArgs}.get(method, AdapterArgs)(**flags)
    METHODS[method].inject(model, args)
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad and method != "full":
            torch.nn.init.normal_(p, std=0.1)
    return model


FORMS = {name: ("lora", {"lora_dropout": 0.0, **flags}) for name, flags in VARIANTS.items()}
FORMS |= {"head": ("lora", {"lora_dropout": 0.0, "lora_head": True}), "full": ("full", {})}
FORMS |= {name: (name, {"adapter_start_layer": 0}) for name in ("adapter", "adapter_v2")}


@pytest.mark.parametrize("share", [0, 512], ids=["each prompt twice", "prompts shared"])
@pytest.mark.parametrize("form", FORMS)
def test_log_probs_and_their_gradients_are_those_of_each_answer_alone(form, share):
    model = prepared_with(tiny("llama-gqa"), *[FORMS[form][0]], **FORMS[form][1]).eval()
    data = make_pairs(5, largest=300)
    weights = torch.linspace(-1, 2, data.n_answers)
    want = plain_log_probs(model, data)
    batches = micro_batches(data, range(5), Packing(64, share))
    assert len(batches) > 1 and all(bool(batch.documents.n_sharing) == bool(share) for batch in batches)
    found = [answer_log_probs(model, batch) for batch in batches]
    torch.testing.assert_close(in_order(found, batches), want, rtol=1e-5, atol=1e-4)
    expected = gradients(model, (want * weights).sum())
    got = gradients(model, (in_order(found, batches) * weights).sum())
    assert got.keys() == expected.keys()
    for name, g in expected.items():
        size = g.abs().max() + 1e-6
        torch.testing.assert_close(got[name] / size, g / size, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["gemma2", "mistral", "qwen3-moe", "neox", "falcon"])
def test_families_share_prompts_where_that_changes_nothing(kind):
    model, data = tiny(kind), make_pairs(4, largest=300)
    from lit_gpt.training.batching import share_up_to

    up_to = share_up_to(model.config, TrainArgs())
    batches = micro_batches(data, range(4), Packing(200, up_to))
    with torch.no_grad():
        found = in_order([answer_log_probs(model, batch) for batch in batches], batches)
        torch.testing.assert_close(found, plain_log_probs(model, data), rtol=1e-5, atol=1e-4)


def test_a_prompt_is_computed_once_for_both_answers_and_the_pair_stays_together():
    data = make_pairs(12).sharing(512)
    batches = micro_batches(data, range(12), Packing(80, 512))
    assert sorted(i for batch in batches for i in batch.rows) == list(range(12))
    assert sum(batch.n_computed for batch in batches) == data.computed.sum() < data.lengths.sum()
    assert all(batch.n_computed <= 80 for batch in batches) and sum(b.n_tokens for b in batches) == data.lengths.sum()
    for batch in batches:
        assert batch.n_terms == batch.n_samples == len(batch.rows) and len(batch.answers) == 2 * len(batch.rows)
        assert torch.bincount(batch.answer).tolist() == [len(data.targets(a)) for a in batch.answers]


def test_the_loss_of_next_tokens_is_the_sum_of_log_probs():
    model = tiny("llama-gqa")
    batch = batch_of(make_pairs(3, largest=300), range(3))
    torch.testing.assert_close(loss_sum(model, batch), -target_log_probs(model, batch).sum())


def pairs_of(n=6, seed=0, with_reference=True):
    """Random log-probabilities, and lengths, of n pairs."""
    draw = torch.Generator().manual_seed(seed)
    values = [-(20 * torch.rand(n, generator=draw) + 0.5) for _ in range(4)]
    lengths = [torch.randint(3, 12, (n,), generator=draw) for _ in range(2)]
    if not with_reference:
        values[2:] = [torch.zeros(n)] * 2
    chosen, rejected, *reference = values
    return Pairs(chosen.requires_grad_(), rejected.requires_grad_(), *lengths, *reference)


@pytest.mark.parametrize("e", [0.0, 0.2])
def test_losses_are_what_their_papers_say(e):
    """The formulas once more, by other means: probabilities in place of log-sigmoids."""
    p, b = pairs_of(), 0.3
    ratio = (p.chosen - p.reference_chosen).exp() / (p.rejected - p.reference_rejected).exp()
    preferred = ratio**b / (1 + ratio**b)  # Bradley and Terry's probability
    want = -(1 - e) * preferred.log() - e * (1 - preferred).log()
    args = PreferenceArgs(beta=b, label_smoothing=e)
    torch.testing.assert_close(dpo(p, args)[0], want, rtol=1e-4, atol=1e-4)
    means = [p.chosen / p.n_chosen, p.rejected / p.n_rejected]
    margin = b * means[0] - b * means[1] - 0.7
    want = -(1 - e) * (1 / (1 + (-margin).exp())).log() - e * (1 / (1 + margin.exp())).log()
    args = PreferenceArgs("simpo", beta=b, simpo_gamma=0.7, label_smoothing=e)
    torch.testing.assert_close(simpo(p, args)[0], want, rtol=1e-4, atol=1e-4)
    if not e:
        odds = [mean.exp() / (1 - mean.exp()) for mean in means]
        want = -means[0] + b * torch.log1p(odds[1] / odds[0])
        torch.testing.assert_close(orpo(p, PreferenceArgs("orpo", beta=b))[0], want, rtol=1e-4, atol=1e-4)
        h = (p.chosen - p.reference_chosen) / p.n_chosen - (p.rejected - p.reference_rejected) / p.n_rejected
        want = h**2 - h / b + 1 / (4 * b * b)
        torch.testing.assert_close(ipo(p, PreferenceArgs("ipo", beta=b))[0], want, rtol=1e-4, atol=1e-4)


def test_the_loss_of_labels_is_what_its_paper_says():
    ratios, kl = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor(0.4)
    desirable = torch.tensor([True, False, False, True])
    args = PreferenceArgs("kto", beta=0.5, desirable_weight=1.2, undesirable_weight=0.7)
    losses, rewards = kto(ratios, kl, desirable, args)
    for loss, reward, good in zip(losses.tolist(), rewards.tolist(), desirable.tolist(), strict=True):
        z = 0.5 * 0.4
        value = 1 / (1 + math.exp(-((reward - z) if good else (z - reward))))
        assert loss == pytest.approx((1.2 if good else 0.7) * (1 - value), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_lets_preferred_answers_rise_and_the_others_fall(name):
    p = pairs_of(seed=3)
    LOSSES[name](p, PreferenceArgs(name))[0].sum().backward()
    assert (p.rejected.grad > 0).all(), "of a rejected answer less is better"
    if name != "ipo":
        assert (p.chosen.grad < 0).all()


def model_for(method="lora", **flags):
    torch.manual_seed(0)
    model = GPT(TINY)
    METHODS[method].inject(model, {"lora": LoRAArgs, "full": FullArgs}.get(method, AdapterArgs)(**flags))
    return model


def with_references(data):
    with torch.no_grad():
        return replace(data, reference=plain_log_probs(model_for(lora_dropout=0.0).eval(), data).numpy())


def learned(out, loss="dpo", data=None, **more):
    """A short run on pairs that prefer answers with even tokens; returns its trained weights and progress."""
    data = data or with_references(make_pairs(24))
    val = with_references(make_pairs(6, 1))
    if loss == "kto":
        data, val = (with_references(with_others(judged_alone(d), 2)) for d in (data, val))
    args = PreferenceArgs(loss, min_chosen_drop=more.pop("min_chosen_drop", None))
    return trained(out, model_for(lora_dropout=0.0), data, val=val, objective=objective_of(args), **more)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(loss, tmp_path):
    """But for KTO, whose estimate of the divergence is a micro-batch's."""
    found = []
    for i, settings in enumerate(({"micro_batch_tokens": 1000}, {"micro_batch_tokens": 40}, {"share_prefixes": False})):
        weights, _ = learned(tmp_path / str(i), loss, **({"micro_batch_tokens": 1000} | settings))
        found.append(weights)
    others = found[1:] if loss == "dpo" else found[2:]
    for other in others:
        for name, x in found[0].items():
            torch.testing.assert_close(other[name], x, rtol=1e-3, atol=1e-5, msg=name)


def untimed(metrics):
    """The cells of metrics.csv without those of time and memory."""
    return [[c for i, c in enumerate(line.split(",")) if i not in (3, 7, 8, 11, 12)] for line in metrics.split()]


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo", "kto"])
def test_a_run_that_is_resumed_ends_with_the_same_weights_bit_for_bit(loss, tmp_path):
    settings = {"save_interval": 3, "keep_last": 9, "validation": ValidationArgs(eval_interval=4)}
    whole, progress = learned(tmp_path / "whole", loss, **settings)
    figures = (tmp_path / "whole" / "metrics.csv").read_text()
    learned(tmp_path / "whole", loss, resumed=tmp_path / "whole" / "checkpoints" / "step-000003", **settings)
    again, progress_again = learned(
        tmp_path / "whole", loss, resumed=tmp_path / "whole" / "checkpoints" / "step-000006", **settings
    )
    assert all(torch.equal(whole[name], x) for name, x in again.items())
    assert progress_again.figures == progress.figures and progress.step == progress_again.step
    without = [
        [cell for i, cell in enumerate(line.split(",")) if i not in (3, 7, 8, 11, 12)] for line in figures.split()
    ]
    lines = (tmp_path / "whole" / "metrics.csv").read_text().split()
    assert [[cell for i, cell in enumerate(line.split(",")) if i not in (3, 7, 8, 11, 12)] for line in lines] == without


def test_figures_are_in_the_log_the_metrics_and_the_report(tmp_path, capsys):
    _, progress = learned(tmp_path, epochs=10, learning_rate=0.05, validation=ValidationArgs(eval_interval=10))
    metrics = read_metrics(tmp_path / "metrics.csv")
    for name in PAIR_FIGURES:
        assert len(metrics.by_step(name, "n_terms")) == progress.step
        assert metrics.column(f"val_{name}")[-1][1] == pytest.approx(progress.figures[name], abs=1e-5)
    assert metrics.terms == "n_terms" and sum(n for (n,) in metrics.rows("n_terms")) == 10 * 24
    losses = dict(metrics.by_step("loss", "n_terms"))
    assert losses[progress.step] < losses[1] - 0.4, "it learns the pairs by heart"
    accuracy = dict(metrics.by_step("accuracy", "n_terms"))
    assert accuracy[progress.step] == 1 and "accuracy 1.000" in capsys.readouterr().out


def test_a_run_ends_where_preferred_answers_became_improbable_and_says_so(tmp_path, capsys):
    settings = {"epochs": 20, "learning_rate": 0.05, "validation": ValidationArgs(eval_interval=2)}
    _, progress = learned(tmp_path, min_chosen_drop=0.2, **settings)
    out = capsys.readouterr().out
    assert progress.step < 120 and "--min_chosen_drop 0.2 ends the run" in out
    before, now = progress.first_figures["chosen_logp"], progress.figures["chosen_logp"]
    assert before - now > 0.2
    _, again = learned(
        tmp_path, min_chosen_drop=0.2, resumed=tmp_path / "checkpoints" / f"step-{progress.step:06d}", **settings
    )
    assert again.step == progress.step, "and stays ended"


def store_of(folder, data, **more):
    settings = {"base_digest": "a-b", "quantize": None, "precision": "32-true", "weights": None} | more
    return ReferenceStore(folder, made_of((data, data), **settings))


def test_the_reference_is_computed_once_and_is_what_a_second_model_says(tmp_path, monkeypatch):
    fabric, data = Fabric(accelerator="cpu", devices=1), make_pairs(8)
    second = GPT(TINY)
    torch.manual_seed(3)
    for p in second.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model = GPT(TINY)
    model.load_state_dict(second.state_dict())
    METHODS["lora"].inject(model, LoRAArgs())  # B is zero: the method is as if it were switched off
    store = store_of(tmp_path, data)
    settings = {"store": store, "split": "train", "train": TrainArgs()}
    some = known_references(fabric, model, data, [1, 3], **settings)
    assert np.isfinite(some).nonzero()[0].tolist() == [2, 3, 6, 7]
    found = known_references(fabric, model, data, range(8), **settings)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), plain_log_probs(second.eval(), data), rtol=1e-5, atol=1e-4)
    assert np.array_equal(found[[2, 3, 6, 7]], some[[2, 3, 6, 7]]), "what was there is taken as it was"
    monkeypatch.setattr("lit_gpt.training.preferences.reference.answer_log_probs", None)  # must not be called
    assert np.array_equal(known_references(fabric, model, data, range(8), **settings), found)
    assert json.loads((tmp_path / f"{store.name}.json").read_text())["precision"] == "32-true"


def test_another_reference_has_another_name(tmp_path):
    data, path = make_pairs(3), tmp_path / "w.pth"
    path.write_bytes(b"1")
    names = [store_of(tmp_path, data).name, store_of(tmp_path, make_pairs(3, seed=1)).name]
    names += [store_of(tmp_path, data, **{key: "x"}).name for key in ("base_digest", "quantize", "precision")]
    names += [store_of(tmp_path, data, weights=path).name]
    path.write_bytes(b"2")
    names += [store_of(tmp_path, data, weights=path).name]
    assert len(set(names)) == len(names)
    assert store_of(tmp_path, data, base_digest="a-other").name == names[0], "of the digest, the part that names values"


@pytest.mark.parametrize("harm", [lambda p: p.write_bytes(b"no array"), lambda p: p.write_bytes(p.read_bytes()[:-9])])
def test_a_damaged_reference_is_computed_again(harm, tmp_path):
    store = store_of(tmp_path, make_pairs(3))
    store.write("train", np.zeros(6, dtype=np.float32))
    assert not store.read("train", 6).any()
    harm(store.path("train"))
    assert np.isnan(store.read("train", 6)).all()


def test_flags_that_contradict_each_other_are_refused():
    from lit_gpt.errors import UserError

    for flags in ({"beta": 0}, {"label_smoothing": 0.5}, {"loss": "ipo", "label_smoothing": 0.1}, {"sft_weight": -1}):
        with pytest.raises(UserError):
            PreferenceArgs(**flags)
    with pytest.raises(UserError, match="SFT term"):
        PreferenceArgs(loss="orpo", sft_weight=0.1)
