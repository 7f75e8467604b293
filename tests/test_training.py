"""The loop's result depends on the data, the seed and the settings, and on nothing else."""

import csv
import fcntl
import math
import os
import pty
import select
import shutil
import struct
import sys
import termios

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, make_samples, plain_loss

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.data.batches import Order, steps
from lit_gpt.data.packing import Packing
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.errors import UserError
from lit_gpt.layers.attention import Documents
from lit_gpt.layers.neftune import noisy
from lit_gpt.lightning import Fabric
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.training import batching
from lit_gpt.training.batching import micro_batch_tokens
from lit_gpt.training.flops import estimated_flops, measured_flops
from lit_gpt.training.loop import fit
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.optimizer import learning_rate
from lit_gpt.training.run import monitor as monitor_module
from lit_gpt.training.run.average import require_checkpoints, save_average
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.gauges import Gauges
from lit_gpt.training.run.monitor import Monitor
from lit_gpt.training.run.session import Session
from lit_gpt.training.validation import validate


def trained(tmp_path, micro_batch_tokens, **kwargs):
    """The trained weights and the step losses of a short run."""
    torch.manual_seed(0)
    model = GPT(TINY)
    lora.inject(model, LoRAArgs(lora_r=4, lora_dropout=0.0, lora_mlp=True))
    args = TrainArgs(batch_size=8, micro_batch_tokens=micro_batch_tokens, learning_rate=1e-2, warmup_steps=1, **kwargs)
    data = make_samples(20)
    out = tmp_path / f"{micro_batch_tokens}-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    monitor = Monitor(out, args.n_samples(len(data)), args.log_interval)
    fit(
        Fabric(accelerator="cpu", devices=1),
        model,
        data,
        make_samples(6, 1),
        Session(CheckpointStore(out, "full"), monitor),
        args,
        ValidationArgs(),
        7,
    )
    monitor.close()
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, (out / "metrics.csv").read_text()


def test_micro_batch_tokens_change_memory_and_nothing_else(tmp_path, capsys):
    one, _ = trained(tmp_path, 1, epochs=2)
    for tokens in (50, 1000):
        other, _ = trained(tmp_path, tokens, epochs=2)
        for name in one:
            # AdamW's first steps are as long for tiny gradients, so that their rounding shows (1.2e-6 with AVX2)
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_gradients_of_a_step_are_those_of_the_mean_over_its_targets():
    torch.manual_seed(0)
    model, data = GPT(TINY), make_samples(8)
    wanted = [F.cross_entropy(model(torch.tensor(i)[None])[0, :-1], torch.tensor(t[1:]).long(), reduction="sum")
              for i, t in ((ids.astype(np.int64), labels) for ids, labels in (data[k] for k in range(8)))]  # fmt: skip
    n_targets = sum(int((data[k][1][1:] != IGNORE).sum()) for k in range(8))
    (sum(wanted) / n_targets).backward()
    want = model.transformer.h[0].attn.qkv.weight.grad.clone()
    for max_tokens in (1, 60, 1000):
        model.zero_grad()
        (batches,) = steps(data, Order(8, 8, 3), 8, Packing(max_tokens))
        assert sum(b.n_targets for b in batches) == n_targets
        for b in batches:
            (loss_sum(model, b) / n_targets).backward()
        torch.testing.assert_close(model.transformer.h[0].attn.qkv.weight.grad, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("max_tokens", [1, 4, 100])
def test_a_sample_is_seen_once_an_epoch_in_an_order_of_the_seed_alone(max_tokens):
    data = stack([([i + 1, i + 1], [i + 1, i + 1]) for i in range(20)])

    def seen(size, seed):
        order = Order(20, 60, seed)
        return [sorted(int(i) for b in step for i in b.ids) for step in steps(data, order, 8, Packing(size))]

    by_step = seen(max_tokens, 5)
    assert by_step == seen(1, 5) and by_step != seen(1, 6)
    assert sorted(i for step in by_step for i in step) == sorted([*range(1, 21)] * 3)
    assert len(by_step) == math.ceil(60 / 8)


def test_epochs_steps_and_iterations_each_end_a_run():
    sizes = {"batch_size": 8, "micro_batch_size": 2}
    assert TrainArgs(**sizes, epochs=2).n_samples(20) == 40
    assert TrainArgs(**sizes, max_steps=3).n_samples(20) == 24
    assert TrainArgs(**sizes, max_iters=5).n_samples(20) == 10
    assert TrainArgs(**sizes, epochs=2, max_steps=3, max_iters=5).n_samples(20) == 10
    assert TrainArgs(**sizes).n_samples(20) == 100_000  # the starter guide's 50,000 micro-batches
    assert TrainArgs(**sizes, epochs=3).n_samples(10**6) == 3 * 10**6


def test_metrics_have_loss_rate_and_real_tokens_per_second(tmp_path, capsys):
    _, text = trained(tmp_path, 64, epochs=3)
    header, *rows = [line.split(",") for line in text.splitlines()]
    rows = [dict(zip(header, r, strict=True)) for r in rows]
    logged = [r for r in rows if r["loss"]]
    assert [int(r["iter"]) for r in logged] == list(range(1, len(logged) + 1)) and logged[-1]["samples"] == "60"
    assert sum(int(r["n_tokens"]) for r in logged) == 3 * len(make_samples(20).ids)
    assert all(float(r["tokens_per_sec"]) > 0 and float(r["learning_rate"]) > 0 for r in logged)
    val = [float(r["val_loss"]) for r in rows if r["val_loss"]]
    assert val[-1] < val[0]
    lines = capsys.readouterr().out
    assert "(optimizer.step)" in lines and "iter 1 step 1: loss" in lines


def test_the_time_of_an_iteration_is_its_own(tmp_path, monkeypatch):
    """Neither that of validations and saves, nor what was before the first one."""
    now = [0.0]
    monkeypatch.setattr(monitor_module.time, "perf_counter", lambda: now[0])
    batches = next(steps(make_samples(12), Order(12, 12, 3), 12, Packing(40)))
    monitor = Monitor(tmp_path, 12, 1)
    now[0] = 50.0
    monitor.begin()
    for report, seconds in ((lambda s: monitor.validated(0, 1.0, s), 10), (monitor.saved, 4), (monitor.paused, 3)):
        now[0] += seconds
        report(seconds)
    for batch, seconds in zip(batches, (2.0, 1.5), strict=False):
        now[0] += seconds
        monitor.iterated(1, batch, torch.tensor(7.0), 0.01, False)
        now[0] += 5
        monitor.saved(5)
    monitor.close()
    with open(monitor.metrics.path, newline="") as file:
        times = [float(row["iter_time_ms"]) for row in csv.DictReader(file) if row["iter_time_ms"]]
    assert times == [2000.0, 1500.0]
    assert monitor.gauges.saves.seconds == 14 and monitor.gauges.validations.seconds == 10


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_gets_a_bar_with_what_matters_and_one_without_width_plain_lines(
    tmp_path, monkeypatch, capsys, columns
):
    batches = next(steps(make_samples(12), Order(12, 12, 3), 12, Packing(40)))
    gauges = Gauges(torch.device("cpu"), 12, 2e6, 1e9, time_left=lambda: 40.0)
    reader, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monitor = Monitor(tmp_path, 12, 1, gauges=gauges)
        for i, batch in enumerate(batches, 1):
            monitor.iterated(1, batch, torch.tensor(7.0), 0.01, i == len(batches))
        monitor.close()
        monkeypatch.undo()
        terminal.flush()
        seen = b""
        while select.select([reader], [], [], 0)[0]:  # a read returns a part of it
            seen += os.read(reader, 4096)
    os.close(reader)
    printed = capsys.readouterr().out
    if not columns:
        assert printed.count("\n") == len(batches) and "deadline in 0:00:40" in printed
        return
    assert printed == "" and len(batches) > 2
    (last,) = [part for part in seen.decode().replace("\n", "\r").split("\r") if "100%" in part][-1:]
    assert len(last) <= 80
    for part in ("12/12", "step 1, loss ", "0:00:00 left", "deadline in 0:00:40"):
        assert part in last, last


def test_validation_is_the_mean_over_all_targets_and_leaves_dropout_off(tmp_path):
    """Each sample by itself and torch's own loss; LoRA's B is drawn at random, or else dropout would change nothing."""
    torch.manual_seed(0)
    model, data = GPT(TINY), make_samples(7)
    lora.inject(model, LoRAArgs(lora_dropout=0.9))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    samples = [data[i] for i in range(len(data))]
    n_targets = sum(int((labels[1:] != IGNORE).sum()) for _, labels in samples)
    with torch.no_grad():
        want = float(plain_loss(model.eval(), samples)) / n_targets
        with_dropout = float(plain_loss(model.train(), samples)) / n_targets
        assert abs(with_dropout / want - 1) > 1e-3  # that is a hundred times what is allowed below
    fabric = Fabric(accelerator="cpu", devices=1)
    for max_tokens in (1, 50, 1000):
        model.train()
        found = validate(fabric, model, data, TrainArgs(micro_batch_tokens=max_tokens), ValidationArgs())
        assert found == pytest.approx(want, rel=1e-5)
    some = validate(fabric, model, data, TrainArgs(micro_batch_size=2), ValidationArgs(eval_iters=2))
    with torch.no_grad():
        want = float(plain_loss(model, samples[:4])) / sum(int((t[1:] != IGNORE).sum()) for _, t in samples[:4])
    assert some == pytest.approx(want, rel=1e-5)


def test_the_schedule_rises_to_the_peak_and_falls_to_zero():
    args = TrainArgs(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(s, 200, args) for s in range(1, 201)]
    assert rates[0] == 0.1 and rates[9] == 1.0 == max(rates) and 0 < rates[-1] < 0.001
    assert learning_rate(1, 5, args) == 1.0  # a run shorter than its warm-up trains all the same
    assert learning_rate(200, 200, TrainArgs(learning_rate=1.0, warmup_steps=10, lr_schedule="constant")) == 1.0


MIXTURE = {"mlp": "moe", "n_expert": 4, "n_expert_per_token": 2}


@pytest.mark.parametrize("traits", [{}, {"tie_embeddings": True}, MIXTURE])
@pytest.mark.parametrize("args", [{}, {"lora_dora": True, "lora_mlp": True, "lora_head": True}, {"lora_init": "pissa"}])
def test_the_estimate_of_operations_is_near_the_count(traits, args):
    from dataclasses import replace

    with torch.device("meta"):
        model = GPT(replace(TINY, n_embd=256, head_size=64, intermediate_size=512, block_size=512, **traits))
        lora.inject(model, LoRAArgs(**args))
    assert measured_flops(model, 4, 64) == pytest.approx(estimated_flops(model, 4, 64), rel=0.05)


def test_noise_on_embeddings_is_bounded_by_the_length_of_its_document_and_gone_in_evaluation():
    """As transformers' `neftune_noise_alpha` draws it for each row of a batch, here for each document of a pack."""
    torch.manual_seed(0)
    documents, x = Documents.of((4, 1, 400)), torch.zeros(1, 405, 256)
    noise = noisy(x, documents, 5.0, torch.tensor([3]))[0]
    for start, n in ((0, 4), (4, 1), (5, 400)):
        bound, part = 5.0 / math.sqrt(n * 256), noise[start : start + n]
        assert 0.97 * bound < part.abs().max() <= bound and part.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    model, (batches,) = GPT(TINY), steps(make_samples(8), Order(8, 8, 3), 8, Packing(1000))
    plain = loss_sum(model.train(), batches[0])
    model.neftune_alpha = 50.0
    assert abs(loss_sum(model, batches[0]) - plain) > 1e-3 and loss_sum(model.eval(), batches[0]) == plain


def test_the_mean_of_the_last_checkpoints_is_a_run_of_its_own(tmp_path, capsys):
    trained(tmp_path, 100, epochs=3, save_interval=3)
    checkpoint_store = CheckpointStore(tmp_path / "100-0", "full")
    folder, taken = save_average(checkpoint_store, 2)
    assert taken == checkpoint_store.steps()[-2:] == [6, 8]
    mean = torch.load(folder / checkpoint_store.weights.name, weights_only=True)
    a, b = (
        torch.load(checkpoint_store.folder_of(step) / checkpoint_store.weights.name, weights_only=True)
        for step in taken
    )
    assert mean.keys() == a.keys() and not all(torch.equal(a[n], b[n]) for n in a)
    for name in mean:
        torch.testing.assert_close(mean[name], (a[name] + b[name]) / 2)
    with pytest.raises(UserError, match="--average_last 9: the run has"):
        save_average(checkpoint_store, 9)
    shutil.copytree(checkpoint_store.folder_of(6), checkpoint_store.folder_of(0))
    with pytest.raises(UserError, match="--average_last 3: the run has 2 checkpoints after"):
        save_average(checkpoint_store, 3)  # what has learned nothing is none of them
    with pytest.raises(UserError, match="--average_last 3 needs --keep_last 3"):
        TrainArgs(average_last=3)
    train = TrainArgs(average_last=3, keep_last=3, save_interval=4)
    for n_steps in (9, 12):
        require_checkpoints(train, n_steps)
    with pytest.raises(UserError, match="--average_last 3: 7 steps with --save_interval 4 are sure to leave 2"):
        require_checkpoints(train, 7)


def test_a_cpu_takes_more_tokens_at_once_where_it_multiplies_16_bits_fast(monkeypatch):
    def tokens(dtype, **train):
        return micro_batch_tokens(TrainArgs(**train), "cpu", dtype)

    monkeypatch.setattr(batching, "MISSING", frozenset())
    assert tokens(torch.bfloat16) > tokens(torch.float32)
    assert tokens(torch.bfloat16, micro_batch_tokens=77) == 77 and tokens(torch.bfloat16, packing=False) == 1
    monkeypatch.setattr(batching, "MISSING", frozenset({torch.bfloat16}))
    assert tokens(torch.bfloat16) == tokens(torch.float32)
