"""Full finetuning trains every weight as AdamW says, and leaves a complete model."""

import sys
from dataclasses import asdict

import pytest
import torch
from runs import train_briefly
from tiny import TINY, deep, documents_of, gradients, kept_a_token, make_samples, tiny

from lit_gpt.args import FullArgs, LoRAArgs, TrainArgs
from lit_gpt.args.folders import CONFIG, WEIGHTS
from lit_gpt.checkpoints.base import load_base
from lit_gpt.checkpoints.runs import Run, load_finetuned, save_run
from lit_gpt.checkpoints.trained import save_trained, trained_path
from lit_gpt.data.batches import Order, collate, steps
from lit_gpt.data.packing import Packing
from lit_gpt.errors import UserError
from lit_gpt.files import save_state
from lit_gpt.layers.quantize import quantizable, quantized
from lit_gpt.lightning import Fabric
from lit_gpt.methods import full, lora
from lit_gpt.model import GPT
from lit_gpt.training.flops import estimated_flops, measured_flops
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import kept_values, training_bytes
from lit_gpt.training.optimizer import BITSANDBYTES, learning_rate, make_optimizer

KINDS = ("llama", "llama-gqa", "llama-mqa", "llama-tied", "mixtral", "qwen3", "stablelm-12b", "neox", "gemma2")


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_gradient_after_a_validation_and_twice_in_a_row(kind):
    model = tiny(kind).requires_grad_(False)
    ids = torch.arange(16)[None]
    before = model(ids)
    full.inject(model, FullArgs())
    assert torch.equal(model(ids), before)
    batch = collate(documents_of((40, 33, 40)))
    for _ in range(2):
        with torch.no_grad():
            loss_sum(model.eval(), batch)
        found = gradients(model.train(), loss_sum(model, batch))
        assert found.keys() == dict(model.named_parameters()).keys()
        assert all(bool(g.any()) for g in found.values())


@pytest.mark.parametrize("kind", ["llama-gqa", "neox"])
def test_blocks_that_are_computed_again_change_nothing(kind):
    model = tiny(kind).train()
    batch = collate(documents_of((7, 1, 33, 12)))
    results = []
    for model.n_recomputed in (0, 1, 2):
        results.append(gradients(model, loss_sum(model, batch)))
    for other in results[1:]:
        for name, g in results[0].items():
            torch.testing.assert_close(other[name], g, rtol=1e-5, atol=1e-7)


def test_the_loop_is_adamw_written_out_by_hand(tmp_path):
    """Its sums of gradients, schedule, clipping, bias correction and decay of matrices alone; 5 steps in 64 bits."""
    model, other = deep(2), deep(2).double()
    train_briefly(model, tmp_path, weight_decay=0.1)
    args = TrainArgs(batch_size=8, learning_rate=1e-2, warmup_steps=1, weight_decay=0.1)
    parameters = dict(other.named_parameters())
    m, v = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
    order = list(steps(make_samples(20), Order(20, 40, 7), 8, Packing(64)))
    for step, batches in enumerate(order, 1):
        loss = sum(loss_sum(other, b) for b in batches) / sum(b.n_targets for b in batches)
        g = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = sum(x.square().sum() for x in g.values()).sqrt()
        rate = learning_rate(step, len(order), args)
        with torch.no_grad():
            for name, p in parameters.items():
                x = g[name] * min(1.0, 1.0 / float(norm))
                p *= 1 - rate * (0.1 if p.dim() == 2 else 0.0)
                m[name] = 0.9 * m[name] + 0.1 * x
                v[name] = 0.999 * v[name] + 0.001 * x * x
                p -= rate * m[name] / (1 - 0.9**step) / ((v[name] / (1 - 0.999**step)).sqrt() + 1e-8)
    assert len(order) == 5
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), parameters[name], rtol=1e-4, atol=2e-4, msg=name)


def test_weight_decay_spares_norms_biases_scales_and_gates():
    from lit_gpt.args import AdapterArgs
    from lit_gpt.methods import adapter_v2

    model = tiny("stablelm-12b")  # whose norms of queries have two dimensions
    for inject, args in ((full.inject, FullArgs()), (adapter_v2.inject, AdapterArgs(adapter_start_layer=1))):
        inject(model, args)
        names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
        groups = make_optimizer(model, TrainArgs(weight_decay=0.1)).param_groups
        decayed, spared = (
            [names.pop(id(p)) for g in groups if g["weight_decay"] == w for p in g["params"]] for w in (0.1, 0.0)
        )
        assert not names and decayed and spared
        assert not [n for n in decayed if any(part in n for part in ("norm", "ln_f", "bias", "scale", "gating"))]
        assert not [n for n in spared if n.endswith((".qkv.weight", ".proj.weight", "wte.weight"))]


def test_the_estimate_of_operations_is_near_the_count():
    for traits in ({}, {"tie_embeddings": True}, {"mlp": "moe", "n_expert": 4, "n_expert_per_token": 2}):
        with torch.device("meta"):
            model = deep(4, n_embd=256, head_size=64, intermediate_size=512, block_size=512, **traits)
            full.inject(model, FullArgs())
        assert measured_flops(model, 4, 64) == pytest.approx(estimated_flops(model, 4, 64), rel=0.1)


def test_a_block_keeps_no_more_than_one_whose_weights_are_frozen():
    kept = {}
    for n_layer in (3, 4):
        model = tiny("llama", num_hidden_layers=n_layer).train()
        kept[n_layer] = kept_a_token(model)
    c = model.config
    assert kept_values(c) <= kept[4] - kept[3] <= kept_values(c) + c.n_head
    n = sum(p.numel() for p in model.parameters())
    assert [training_bytes(model, TrainArgs(optimizer=o)) / n for o in ("adamw", "adamw8bit", "paged_adamw")] == [
        12,
        6,
        4,
    ]


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-tied"])
def test_what_is_saved_is_a_complete_model(kind, tmp_path):
    base, run_dir, again = tmp_path / "base", tmp_path / "run", tmp_path / "again"
    for folder in (base, run_dir, again):
        folder.mkdir()
    model = tiny(kind)
    save_state(model.state_dict(), base / WEIGHTS)
    model.config.to_json(base / CONFIG), model.config.to_json(again / CONFIG)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    model, digest = load_base(fabric, base)
    full.inject(model, FullArgs())
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    save_trained(model, path := trained_path(run_dir, "full"))
    assert path.name == "lit_model_finetuned.pth"
    record = Run("full", asdict(FullArgs()), "plain", str(base), digest, {}, {}, {})
    save_run(record, run_dir)
    loaded, run = load_finetuned(fabric, base, path)
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), model(ids)) and run.method == "full"
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == (kind == "llama-tied")
    (again / WEIGHTS).write_bytes(path.read_bytes())  # it can take the place of a base
    assert torch.equal(load_base(fabric, again)[0](ids), model(ids))
    in_8_bits, _ = load_finetuned(fabric, base, run_dir, "int8")
    assert 0 < (in_8_bits(ids) - model(ids)).norm() < 0.1 * model(ids).norm()
    with pytest.raises(UserError, match="other weights"):
        load_finetuned(fabric, again, run_dir)


def test_quantized_weights_are_refused():
    model = tiny("llama")
    for path in quantizable(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, quantized(model.get_submodule(path), "int8"))
    with pytest.raises(UserError, match="is quantized; leave out --quantize"):
        full.inject(model, FullArgs())


@pytest.mark.parametrize("optimizer", ["adamw", *BITSANDBYTES])
def test_each_optimizer_trains(optimizer, tmp_path):
    model = deep(2, n_embd=128, head_size=32)  # states of fewer than 4,096 values stay in 32 bits
    before, after = train_briefly(model, tmp_path, optimizer=optimizer)
    assert after < 0.9 * before
    made = make_optimizer(model, TrainArgs(optimizer=optimizer))
    sum(p.sum() for p in model.parameters()).backward()
    made.step()
    dtypes = {
        x.dtype for state in made.state.values() for x in state.values() if torch.is_tensor(x) and x.numel() >= 4096
    }
    assert (torch.uint8 in dtypes) == ("8bit" in optimizer)


@pytest.mark.parametrize("optimizer", BITSANDBYTES)
def test_learning_rates_of_groups_hold_with_each_optimizer_through_the_schedule(optimizer, tmp_path):
    """LoRA+ and weight decay: what each matrix becomes in five steps is what torch's AdamW makes of it."""
    found = {}
    for name in ("adamw", optimizer):
        model = deep(2, n_embd=128, head_size=32)
        lora.inject(model, LoRAArgs(lora_r=32, lora_dropout=0.0, lora_plus_ratio=4.0))  # matrices of 4,096 and more
        start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        train_briefly(model, tmp_path / name, optimizer=name, weight_decay=0.5)
        found[name] = {n: model.get_parameter(n).detach() - x for n, x in start.items()}
    for name, want in found["adamw"].items():
        assert (found[optimizer][name] - want).norm() < 0.05 * want.norm(), name


def test_an_optimizer_of_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r'--optimizer adamw8bit needs .* pip install -e "\.\[quantize\]"'):
        make_optimizer(GPT(TINY), TrainArgs(optimizer="adamw8bit"))


def test_only_what_trains_is_in_the_optimizer():
    model = GPT(TINY)
    lora.inject(model, LoRAArgs())
    groups = make_optimizer(model, TrainArgs()).param_groups
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
