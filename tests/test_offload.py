"""Gradients that wait in the host's memory change where they are, and nothing of a run."""

import itertools

import pytest
import torch
from gradient_steps import gradients_of, loss_of, model_of
from jobs import DATA, job_of
from runs import train_briefly
from tiny import TINY

from lit_gpt.args import TrainArgs
from lit_gpt.errors import UserError
from lit_gpt.families import config_for
from lit_gpt.model import GPT
from lit_gpt.planning.devices import named
from lit_gpt.planning.fit import fitted, flags_of, lighter
from lit_gpt.planning.plan import make_plan
from lit_gpt.planning.show import lines_of
from lit_gpt.training.offload import OffloadedGradients, require_offload


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_norm": 0.05},
        {"max_norm": 0.0, "weight_decay": 0.1},
        {"recompute": "all"},
        {"packing": False},
        {"optimizer": "adamw8bit"},
        {"optimizer": "paged_adamw8bit"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_run_is_the_same_to_the_last_bit(settings, tied, tmp_path):
    """Over steps of several micro-batches, clipped and not, with each optimizer."""
    if "optimizer" in settings:
        pytest.importorskip("bitsandbytes")
    found = []
    for offload in (False, True):
        model = model_of(n_embd=128, head_size=32, tie_embeddings=tied)
        start = weights(model)
        losses = train_briefly(model, tmp_path / str(offload), offload_gradients=offload, **settings)
        assert all(not torch.equal(p, start[n]) for n, p in model.named_parameters())
        found.append((weights(model), losses))
    assert found[0][1] == found[1][1]
    for name, want in found[0][0].items():
        assert torch.equal(found[1][0][name], want), name


def test_for_lora_too(tmp_path):
    found = []
    for offload in (False, True):
        model = model_of("lora")
        train_briefly(model, tmp_path / str(offload), offload_gradients=offload)
        found.append(weights(model))
    assert all(torch.equal(found[1][name], want) for name, want in found[0].items())


def test_no_two_parameters_have_a_gradient_at_a_time():
    model = model_of()
    gradients, at_once = gradients_of(model), []

    def there():
        return sum(p.grad is not None for p in model.parameters())

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: at_once.append(there()))
    for _ in range(2):
        loss_of(model).backward()
    assert len(at_once) == 2 * len(list(model.parameters())) and set(at_once) == {0}
    step, seen = gradients.optimizer.optimizer.step, []

    def counted(*args, **kwargs):
        seen.append(there())
        return step(*args, **kwargs)

    gradients.optimizer.optimizer.step = counted
    gradients.step(1)
    assert set(seen) == {1} and len(seen) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_the_optimizer_gets_gradients_of_the_norm_that_is_asked_for(offload, max_norm):
    """Which AdamW's steps hardly show: they are as long whatever the gradients are multiplied by."""
    model, squares = model_of(), []
    gradients = gradients_of(model, offload_gradients=offload, max_norm=max_norm)
    step = gradients.optimizer.optimizer.step

    def counted(*args, **kwargs):
        squares.extend(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
        return step(*args, **kwargs)

    gradients.optimizer.optimizer.step = counted
    want = torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(model), list(model.parameters()))]).norm().item()
    loss_of(model).backward()
    gradients.step(1)
    assert want > 1 and len(squares) == len(list(model.parameters()))
    assert sum(squares) ** 0.5 == pytest.approx(min(want, max_norm or want), rel=1e-4)


def test_a_gradient_that_is_not_finite_skips_the_step_for_every_parameter(capsys):
    model = model_of()
    gradients, before = gradients_of(model), weights(model)
    loss_of(model).backward()
    gradients.waiting[-1][0] = float("nan")  # what the last one of a backward pass would find too late
    gradients.found[len(gradients.waiting) - 1] = torch.tensor(float("nan"))
    gradients.step(1)
    gradients.settle()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert gradients.n_skipped == 1 and gradients.names[-1] in capsys.readouterr().out
    loss_of(model).backward()
    gradients.step(2)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_what_a_step_had_done_when_the_memory_ran_out_is_gone(tmp_path):
    found = []
    for offload in (False, True):
        model, passes = model_of(), itertools.count()

        def once(module, gradient, model=model, passes=passes):
            if next(passes) == 4:  # in the backward pass, with the gradients of some of the layers taken away
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model.transformer.h[0].mlp.register_full_backward_hook(once)
        train_briefly(model, tmp_path / str(offload), offload_gradients=offload)
        assert next(passes) > 8
        found.append(weights(model))
    assert all(torch.equal(found[1][name], want) for name, want in found[0].items())


def test_taking_memory_for_the_optimizer_changes_no_weight():
    model = model_of()
    gradients, before = gradients_of(model), weights(model)
    gradients.allocate()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert len(gradients.optimizer.optimizer.state) == len(before)
    assert all(p.grad is None for p in model.parameters()) and isinstance(gradients, OffloadedGradients)


def test_scaled_gradients_are_refused_before_anything_happens():
    require_offload(TrainArgs(), "16-mixed")
    require_offload(TrainArgs(offload_gradients=True), "bf16-mixed")
    with pytest.raises(UserError, match="--offload_gradients true does not go with --precision 16-mixed"):
        require_offload(TrainArgs(offload_gradients=True), "16-mixed")


@pytest.mark.parametrize("name", ["open_llama_3b", "pythia-1.4b"])
def test_a_plan_never_chooses_what_a_run_refuses(name):
    """On a T4, which has no bf16, the script's own precision is 16-mixed."""
    config = config_for(name)
    args = job_of("full", config, named("t4"), precision="16-mixed", micro_batch_tokens=None)
    for job in lighter(args):
        require_offload(job.train, job.precision)
    assert any(job.train.offload_gradients for job in lighter(args))


def test_a_full_finetuning_of_7b_is_planned_into_24_gb():
    """Weights 13.5 GB; gradients and the optimizer's state on the host, which the plan says."""
    config = config_for("open_llama_7b")
    args = job_of("full", config, named("rtx4090"), precision="bf16-mixed", micro_batch_tokens=None)
    plan = fitted(make_plan(args, DATA), DATA)
    assert plan.fits and plan.memory["trained weights"] == 2 * 6_738_415_616
    assert plan.memory["gradients"] == 2 * 2 * 32000 * 4096 and plan.memory["optimizer"] == 0
    assert plan.host == {"gradients": 2 * 6_738_415_616, "optimizer": 2 * 6_738_415_616}
    assert "in the host's memory, besides: gradients 13.48, optimizer 13.48" in "\n".join(lines_of(plan))
    flags = flags_of(args, plan.job)
    assert "--offload_gradients true" in flags and "--optimizer paged_adamw8bit" in flags
    assert "--precision bf16-true" in flags
    larger = job_of("full", config, named("a100-40gb"), precision="bf16-mixed", micro_batch_tokens=None)
    assert not fitted(make_plan(larger, DATA), DATA).job.train.offload_gradients


def test_a_model_with_shared_weights_is_one_gradient():
    model = GPT(TINY)
    model.lm_head.weight = model.transformer.wte.weight
    gradients = gradients_of(model)
    (loss_of(model) / 7).backward()
    want = [g.clone() for g in gradients.waiting]
    (loss_of(model) / 7).backward()
    for twice, once in zip(gradients.waiting, want, strict=True):
        torch.testing.assert_close(twice, 2 * once)
