"""A mixture of experts is the sum that its paper says, and trains each of its experts."""

import pytest
import torch
from peft_models import move
from tiny import documents_of, gradients, tiny

from lit_gpt.args import LoRAArgs
from lit_gpt.config import Config
from lit_gpt.data.batches import collate
from lit_gpt.layers import experts
from lit_gpt.layers.moe import MoE
from lit_gpt.layers.quantize import QUANTIZATIONS, quantizable, quantized
from lit_gpt.methods import lora
from lit_gpt.training.loss import loss_sum


def mixture(n_expert, n_expert_per_token):
    sizes = {"n_embd": 16, "n_head": 4, "intermediate_size": 24, "rotary_percentage": 1.0}
    kind = {"mlp": "moe", "n_expert": n_expert, "n_expert_per_token": n_expert_per_token}
    torch.manual_seed(0)
    return MoE(Config(activation="silu", **sizes, **kind))


def one_by_one(model, x):
    """One token after the other."""
    rows = []
    for row in x.flatten(0, -2).split(1):
        scores, chosen = model.gate(row)[0].topk(model.n_expert_per_token)
        parts = [w * model.experts[e](row) for w, e in zip(scores.softmax(-1), chosen.tolist(), strict=True)]
        rows.append(torch.stack(parts).sum(0))
    return torch.cat(rows).view_as(x)


@pytest.mark.parametrize("n_expert", [4, 9])
@pytest.mark.parametrize("n_expert_per_token", [1, 3])
@pytest.mark.parametrize("shape", [(1, 30), (2, 5), (1, 1)])
def test_each_token_goes_through_the_experts_that_it_chooses(n_expert, n_expert_per_token, shape):
    model, found = mixture(n_expert, n_expert_per_token), []
    x, dy = torch.randn(*shape, 16), torch.randn(*shape, 16)
    for work in (model, lambda x: one_by_one(model, x)):
        model.zero_grad()
        given = x.clone().requires_grad_()
        y = work(given)
        y.backward(dy)
        trained = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        found.append([y.detach(), given.grad, *trained])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), found[1][0], rtol=1e-4, atol=1e-6)


def test_an_expert_that_no_token_chooses_has_a_gradient_of_zero():
    """None would leave it out of the optimizer's step, which goes on by its momentum; a resumed run has to, too."""
    model = mixture(4, 1)
    model(torch.randn(1, 1, 16)).sum().backward()
    sums = [[float(p.grad.abs().sum()) for p in expert.parameters()] for expert in model.experts]
    assert sorted(any(s) for s in sums) == [False, False, False, True]


def test_an_expert_that_no_token_chooses_is_left_out_where_nothing_trains():
    model, called = mixture(9, 2), []
    for expert in model.experts:
        expert.register_forward_pre_hook(lambda m, args: called.append(len(args[0])))
    with torch.no_grad():
        model(torch.randn(1, 1, 16))
    assert called == [1, 1]


@pytest.mark.parametrize(
    ("case", "pads"),
    [("plain", True), *((case, False) for case in ("pissa", "dropout", "frozen", "bnb.nf4", "int8"))],
)
def test_one_pass_over_all_experts_has_the_gradients_of_each_by_itself(case, pads, monkeypatch):
    """As on a GPU, where slices are filled up (`pads`), and as on a CPU."""
    if case.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = tiny("mixtral", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    if case in QUANTIZATIONS:
        for path in quantizable(model):
            model.set_submodule(path, quantized(model.get_submodule(path), case))
    flags = {"lora_init": "pissa"} if case == "pissa" else {}
    dropout = 0.2 if case == "dropout" else 0.0
    lora.inject(model, LoRAArgs(lora_r=2, lora_dropout=dropout, lora_mlp=case != "frozen", **flags))
    move(model)
    called, batch, found = [], collate(documents_of((20, 7, 9))), []
    for expert in model.transformer.h[0].mlp.experts:
        expert.fc_1.register_forward_pre_hook(lambda *given: called.append(1))
    if dropout:  # drawn by layer: in one pass a token loses the same in all of its experts
        model.train()
        of_all = {name: getattr(model.transformer.h[0].mlp.experts[0], name) for name in ("fc_1", "fc_2", "proj")}
        for expert in model.transformer.h[0].mlp.experts:
            for name, first in of_all.items():
                getattr(expert, name).number = first.number
    model.draws.begin(1, 0, torch.device("cpu"))
    monkeypatch.setattr(experts, "_pads", lambda x: pads)
    found.append(gradients(model, loss_sum(model, batch)))
    assert not called
    monkeypatch.setattr(MoE, "in_one_pass", lambda *given: None)
    found.append(gradients(model, loss_sum(model, batch)))
    assert called and found[0].keys() == found[1].keys()
    for name, wanted in found[1].items():
        torch.testing.assert_close(found[0][name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max() + 1))
