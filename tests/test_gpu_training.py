"""On a GPU the training step computes what it does on a CPU: flash attention, compiled pieces, dropout, no waiting."""

import copy

import numpy as np
import pytest
import torch
from conftest import ALL
from gpu_steps import LLAMA, SHAPES, SIZES, batch_of, step

from lit_gpt.args import LoRAArgs, TrainArgs
from lit_gpt.config import Config
from lit_gpt.data.batches import collate
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import IGNORE
from lit_gpt.layers import dropout
from lit_gpt.layers.compiled import set_compile
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.training.batching import packing_of
from lit_gpt.training.loss import loss_sum

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def make(kind, p=0.0):
    torch.manual_seed(0)
    model = GPT(Config(name=kind, **SIZES, **SHAPES[kind])).train()
    lora.inject(model, LoRAArgs(lora_r=8, lora_dropout=p, **ALL))
    for name, parameter in model.named_parameters():
        if lora.trainable(name):
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def beginning_alike(n_tokens, *lengths, apart=False):
    """Documents that go on from the same tokens, each with so many of its own; `apart`, with those in each."""
    rng = np.random.default_rng(sum(lengths))
    prefix = rng.integers(0, 500, n_tokens)
    samples = []
    for n in lengths:
        ids = np.concatenate((prefix, rng.integers(0, 500, n))).astype(np.int32)
        labels = np.where(rng.random(len(ids)) < 0.6, ids, IGNORE).astype(np.int32)
        labels[: n_tokens + 1] = IGNORE
        samples.append((ids, labels))
    return collate(samples, () if apart else [(n_tokens, len(lengths) - 1)])


@pytest.fixture(params=[False, True], ids=["plain", "compiled"])
def compiled(request):
    set_compile(request.param)
    yield request.param
    set_compile(False)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_a_cpu(kind, dtype, compiled):
    torch.backends.cuda.matmul.allow_tf32 = False
    model, batch = make(kind), batch_of(100, 1, 33, 77, 20)
    want_loss, want = step(model, batch)
    on_gpu = copy.deepcopy(model).cuda()
    for name, parameter in on_gpu.named_parameters():
        if not lora.trainable(name):
            parameter.data = parameter.data.to(dtype)
    for shuffled in (batch, batch_of(64, 40, seed=1)):  # another length, then what was wanted again
        loss, got = step(on_gpu, shuffled.to(torch.device("cuda")))
    loss, got = step(on_gpu, batch.to(torch.device("cuda")))
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    torch.testing.assert_close(loss, want_loss, rtol=tolerance / 10, atol=0)
    for name, g in got.items():
        if kind == "mixture" and dtype != torch.float32:
            continue  # rounding sends tokens to other experts
        assert (g - want[name]).norm() <= tolerance * want[name].norm() + 1e-8, name


@pytest.mark.parametrize("kind", ["llama", "gqa", "mqa", "neox", "window", "qwen3"])
def test_a_prefix_that_is_computed_once_changes_nothing(kind, compiled):
    model = make(kind)
    want_loss, want = step(model, beginning_alike(20, 19, 3, 7, 1, 12, apart=True))
    model = model.cuda()
    for name, parameter in model.named_parameters():
        if not lora.trainable(name):
            parameter.data = parameter.data.bfloat16()
    assert packing_of(model, TrainArgs(), torch.device("cuda")).share_up_to > 0
    for _ in range(2):
        loss, got = step(model, beginning_alike(20, 19, 3, 7, 1, 12).to(torch.device("cuda")))
    torch.testing.assert_close(loss, want_loss, rtol=6e-3, atol=0)
    for name, g in got.items():
        assert (g - want[name]).norm() <= 6e-2 * want[name].norm() + 1e-8, name


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_drops_what_it_should_and_the_same_again(p, compiled):
    x = torch.ones(2048, 512, device="cuda", dtype=torch.bfloat16)
    seeds = [torch.tensor([s], device="cuda") for s in (1, 2)]
    a, b = (dropout.dropped(x, s, p) for s in seeds)
    assert torch.equal(a, dropout.dropped(x, seeds[0], p)) and not torch.equal(a, b)
    assert abs((a == 0).float().mean().item() - p) < 0.004
    assert abs((a == 0).float().mean(0) - p).max() < 0.06 and abs((a == 0).float().mean(1) - p).max() < 0.12
    both = ((a == 0) & (b == 0)).float().mean().item()
    assert abs(both - p * p) < 0.004
    got = dropout.add_dropped(x.clone(), x, seeds[0], p)
    torch.testing.assert_close(got, x + a, rtol=1e-2, atol=1e-2)


def test_dropout_in_the_backward_pass_is_the_forward_passs(compiled):
    """The gradient by differences along B, whose input is what was dropped."""
    model = make("llama", p=0.5).cuda()
    batch = batch_of(100, 60).to(torch.device("cuda"))
    layer = model.transformer.h[0].mlp.proj
    torch.manual_seed(5)
    torch.cuda.manual_seed(5)
    _, gradients = step(model, batch)
    direction = torch.randn_like(layer.lora_A[0])
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            layer.lora_A[0] += sign * 1e-2 * direction
            torch.manual_seed(5)
            torch.cuda.manual_seed(5)
            losses.append(loss_sum(model, batch).double() / batch.n_targets)
            layer.lora_A[0] -= sign * 1e-2 * direction
    slope = ((losses[0] - losses[1]) / 2e-2).item()
    want = (gradients["transformer.h.0.mlp.proj.lora_A.0"] * direction.cpu()).sum().item()
    assert slope == pytest.approx(want, rel=0.05, abs=1e-5)


def test_a_step_never_waits_for_the_gpu(compiled):
    model, batch = make("llama", p=0.1).cuda().bfloat16(), batch_of(100, 60)
    step(model, batch.to(torch.device("cuda")))
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to(torch.device("cuda"))
        loss = loss_sum(model, moved)
        (loss / moved.n_targets).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["llama", "mqa", "neox", "window", "qwen3"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_recorded_step_is_the_plain_one(kind, shared):
    from lit_gpt.training.graphs import Recorder, recorded_hidden

    set_compile(True)
    model = make(kind).cuda()
    for name, parameter in model.named_parameters():
        if not lora.trainable(name):
            parameter.data = parameter.data.bfloat16()
    batches = [batch_of(*lengths) for lengths in ((100, 33), (60,), (90, 1, 40, 90, 30), (7, 7))]
    if shared:
        batches[1:1] = [beginning_alike(30, 20, 9, 30), beginning_alike(20, 3)]
    batches = [batch.to(torch.device("cuda")) for batch in batches]
    want = []
    for batch in batches:
        model.zero_grad()
        loss = loss_sum(model, batch)
        (loss / batch.n_targets).backward()
        want.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
        del loss  # its graph would tie the recording to this stream
    hidden_of = recorded_hidden(model, Packing(256, 128 * shared), np.array([100, 50, 30]))
    assert isinstance(hidden_of, Recorder) and [r.size for r in hidden_of.recordings] == [256, 128, 64, 32]
    for _ in range(2):
        for batch, (want_loss, gradients) in zip(batches, want, strict=True):
            model.zero_grad(set_to_none=False)
            loss = loss_sum(model, batch, hidden_of)
            (loss / batch.n_targets).backward()
            torch.testing.assert_close(loss.detach(), want_loss, rtol=1e-3, atol=0)
            for name, p in model.named_parameters():
                if p.requires_grad:
                    assert (p.grad - gradients[name]).norm() <= 2e-2 * gradients[name].norm() + 1e-8, name


def test_a_recorded_step_draws_another_dropout_each_time():
    from lit_gpt.training.graphs import recorded_hidden

    model, batch = make("llama", p=0.5).cuda().bfloat16(), batch_of(100, 60).to(torch.device("cuda"))
    hidden_of = recorded_hidden(model, Packing(256), np.array([100, 60]))
    losses = {loss_sum(model, batch, hidden_of).item() for _ in range(4)}
    assert len(losses) == 4


def test_gradients_that_wait_on_the_host_change_nothing_but_where_they_are(tmp_path):
    """The same weights to the last bit, over several micro-batches a step, with less memory at the peak."""
    from lit_gpt.args import FullArgs, TrainArgs
    from lit_gpt.lightning import Fabric
    from lit_gpt.methods import full
    from lit_gpt.training.offload import make_gradients
    from lit_gpt.training.optimizer import make_optimizer

    found, peaks = [], []
    fabric = Fabric(accelerator="cuda", devices=1, precision="bf16-true")
    for offload in (False, True):
        torch.manual_seed(0)
        sizes = SIZES | LLAMA | {"n_layer": 8, "n_embd": 512, "head_size": 64, "intermediate_size": 1408}
        model = GPT(Config(name="wide", **sizes)).cuda().bfloat16().train()
        full.inject(model, FullArgs())
        train = TrainArgs(learning_rate=1e-3, offload_gradients=offload)
        optimizer = fabric.setup_optimizers(make_optimizer(model, train))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        gradients = make_gradients(fabric, model, optimizer, train)
        gradients.allocate()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for n in range(3):
            for seed in (0, 1):
                batch = batch_of(30, 20, seed=seed).to(torch.device("cuda"))
                (loss_sum(model, batch) / batch.n_targets).backward()
            gradients.step(n + 1)
        gradients.settle()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        found.append({name: p.detach().clone() for name, p in model.named_parameters()})
        trained = sum(p.nbytes for p in model.parameters())
        del model, optimizer, gradients
    assert all(torch.equal(found[1][name], want) for name, want in found[0].items())
    assert peaks[1] < peaks[0] - 0.5 * trained
