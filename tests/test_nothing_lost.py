"""What goes wrong in the middle of a run: memory, disk, numbers, the clock. The run goes on, or ends saved."""

import csv
import itertools
import os
import resource
import subprocess
import time

import pytest
import torch
from runs import model_with_lora, trained
from tiny import TINY, make_samples

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.errors import UserError
from lit_gpt.training.length import length_of
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.optimizer import learning_rate
from lit_gpt.training.run import budget as budget_module
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.progress import Progress, read_progress


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


class Hungry:
    """Has memory for so many tokens in a forward pass, and with all blocks recomputed for any number."""

    def __init__(self, model, tokens, ever=True):
        self.model, self.tokens, self.ever = model, tokens, ever
        model.transformer.wte.register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        helped = self.ever and self.model.n_recomputed
        if self.model.training and inputs[0].numel() > self.tokens and not helped:
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_when_memory_runs_out_the_steps_stay_the_same(tmp_path, capsys):
    """Without dropout, whose draws go by micro-batch: the same samples, the same loss, the same weights."""
    plain, _ = trained(tmp_path / "plain", model_with_lora(0), micro_batch_tokens=25)
    model = model_with_lora(0)
    Hungry(model, 40)
    got, progress = trained(tmp_path / "hungry", model, micro_batch_tokens=200)
    for name in plain:
        torch.testing.assert_close(got[name], plain[name], rtol=1e-3, atol=1e-5)
    out = capsys.readouterr().out
    assert "micro-batches of 100 tokens" in out and "micro-batches of 50 tokens" in out
    assert progress.micro_batch_tokens is not None and progress.micro_batch_tokens <= 50
    model = model_with_lora(0)
    Hungry(model, 1)  # not even the longest sample fits, unless everything is recomputed
    got, progress = trained(tmp_path / "recomputed", model, micro_batch_tokens=200)
    for name in plain:
        torch.testing.assert_close(got[name], plain[name], rtol=1e-3, atol=1e-5)
    assert progress.n_recomputed == TINY.n_layer and "all blocks recomputed" in capsys.readouterr().out


def test_what_a_step_had_done_when_the_memory_ran_out_does_not_count_twice(tmp_path):
    """Neither its gradients nor its lines in metrics.csv."""
    plain, _ = trained(tmp_path / "plain", model_with_lora(0), packing=False)
    model, passes = model_with_lora(0), itertools.count()

    def once(module, inputs):
        if model.training and next(passes) == 3:  # after the rehearsal's one and two of the first step
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.transformer.wte.register_forward_pre_hook(once)
    got, _ = trained(tmp_path / "cut", model, packing=False)
    for name in plain:
        torch.testing.assert_close(got[name], plain[name], rtol=1e-3, atol=1e-5)
    columns = []
    for folder in ("plain", "cut"):
        with open(tmp_path / folder / "metrics.csv", newline="") as file:
            columns.append([(r["iter"], r["step"], r["samples"], r["n_tokens"]) for r in csv.DictReader(file)])
    assert columns[0] == columns[1] and len(columns[0]) > 48


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("recomputed", [False, True])
def test_killed_after_the_memory_ran_out_a_run_goes_on_with_what_it_had_room_for(tmp_path, capsys, recomputed):
    """In the middle of the run the memory gets scarce; the process that goes on has all of it again."""
    room = 1 if recomputed else 40  # not even the longest sample fits, unless all is recomputed

    def scarce(killed_at=None):
        model, passes = model_with_lora(), itertools.count()

        def hook(module, inputs):
            n = next(passes) if model.training else -1
            if n == killed_at:
                raise Killed
            if n >= 8 and inputs[0].numel() > room and not model.n_recomputed:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model.transformer.wte.register_forward_pre_hook(hook)
        return model

    args = {"save_interval": 1, "micro_batch_tokens": 200}
    whole, _ = trained(tmp_path / "whole", scarce(), **args)
    with pytest.raises(Killed):
        trained(tmp_path / "out", scarce(killed_at=18), **args)
    checkpoint_store = CheckpointStore(tmp_path / "out", "lora")
    before = read_progress(checkpoint_store.newest())
    assert 0 < before.step < 11 and before.micro_batch_tokens and before.micro_batch_tokens <= 50
    assert before.n_recomputed == (TINY.n_layer if recomputed else 0)
    capsys.readouterr()
    model, seen = model_with_lora(), []
    model.transformer.wte.register_forward_pre_hook(lambda _, x: seen.append(x[0].numel()) if model.training else None)
    got, progress = trained(tmp_path / "out", model, resumed=checkpoint_store.newest(), **args)
    assert max(seen[1:]) <= before.micro_batch_tokens and "Out of memory" not in capsys.readouterr().out
    assert (progress.micro_batch_tokens, model.n_recomputed) == (before.micro_batch_tokens, before.n_recomputed)
    assert_equal(whole, got)


def test_with_no_memory_at_all_it_ends_before_the_first_step(tmp_path):
    model = model_with_lora()
    Hungry(model, 1, ever=False)
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path / "none", model)


def test_memory_that_ends_in_the_middle_leaves_a_checkpoint_of_the_last_whole_step(tmp_path):
    model, steps = model_with_lora(0), itertools.count()

    def later(module, inputs):
        if model.training and next(steps) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.transformer.wte.register_forward_pre_hook(later)
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path / "cut", model, save_interval=1000)
    checkpoint_store = CheckpointStore(tmp_path / "cut", "lora")
    assert checkpoint_store.steps()[-1] > 2
    whole, _ = trained(tmp_path / "whole", model_with_lora(0))
    again, _ = trained(tmp_path / "cut", model_with_lora(0), resumed=checkpoint_store.newest())
    for name in whole:
        torch.testing.assert_close(again[name], whole[name], rtol=1e-3, atol=1e-5)


def test_the_rehearsal_and_the_limit_that_is_not_reached_change_nothing(tmp_path, monkeypatch):
    plain, _ = trained(tmp_path / "plain")
    limited, _ = trained(tmp_path / "limited", max_time="10:00:00")
    assert_equal(plain, limited)
    monkeypatch.setattr("lit_gpt.training.loop.try_largest_batch", lambda *a, **k: None)
    assert_equal(plain, trained(tmp_path / "bold")[0])


@pytest.mark.parametrize(("long", "n_tried"), [(0.0, 1), (1e9, 2)])
def test_a_long_pass_is_not_tried_twice_for_its_time(tmp_path, monkeypatch, long, n_tried):
    """A sample of a hundred thousand tokens takes a minute, each time."""
    tried = []
    largest = BatchLoader.largest_batch
    monkeypatch.setattr(BatchLoader, "largest_batch", lambda self: tried.append(0) or largest(self))
    monkeypatch.setattr("lit_gpt.training.step._LONG", long)
    trained(tmp_path / "limited", max_time="10:00:00")
    assert len(tried) == n_tried


def spoil(model, which):
    """The gradient of the norm's output is not a number in these forward passes of the training."""
    passes = itertools.count()

    def hook(module, inputs, output):
        if model.training and next(passes) in which:
            return output * float("nan")

    model.transformer.ln_f.register_forward_hook(hook)
    return model


def test_a_step_without_a_finite_gradient_is_skipped_and_named(tmp_path, capsys):
    got, progress = trained(tmp_path / "once", spoil(model_with_lora(), {4}))
    out = capsys.readouterr().out
    assert out.count("is skipped: the gradient of transformer.h.0.attn.qkv.lora_") == 1, out
    assert progress.step == 12 and all(torch.isfinite(p).all() for p in got.values())
    never, _ = trained(tmp_path / "never")
    assert any(not torch.equal(got[name], never[name]) for name in never)


def test_many_that_are_not_in_a_row_do_not_end_the_run(tmp_path, capsys):
    model = spoil(model_with_lora(), range(2, 10**6, 2))
    _, progress = trained(tmp_path / "out", model, micro_batch_tokens=1000, epochs=8, save_interval=1000)
    assert progress.step == 48 and capsys.readouterr().out.count("is skipped") > 10


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_many_in_a_row_end_the_run_saved_and_name_the_rows(tmp_path, optimizer):
    model = spoil(model_with_lora(), range(9, 10**6))
    with pytest.raises(
        UserError, match=r"10 steps in a row are not finite.*samples of step \d+: numbers (\d+, ){3}\d+"
    ):
        trained(tmp_path / "nan", model, epochs=20, optimizer=optimizer)
    checkpoint_store = CheckpointStore(tmp_path / "nan", "lora")
    progress = read_progress(checkpoint_store.newest())
    assert progress.step >= 10
    state = torch.load(checkpoint_store.weights, weights_only=True)
    assert all(torch.isfinite(x).all() for x in state.values())
    assert any(x.abs().sum() > 0 for n, x in state.items() if "lora_B" in n)  # the steps before are in it


def test_a_disk_that_is_full_for_a_while_costs_no_step(tmp_path, capsys):
    """A limit on the size of files: writing fails as on a full disk, in the middle of a file."""
    whole, _ = trained(tmp_path / "whole", save_interval=2)
    model, passes = model_with_lora(), itertools.count()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def hook(module, inputs):
        if model.training:
            limit = {5: 4000, 12: before[0]}.get(next(passes))
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    model.transformer.wte.register_forward_pre_hook(hook)
    try:
        got, _ = trained(tmp_path / "full", model, save_interval=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().out
    assert "is not saved" in said and "The run goes on and tries again" in said
    assert_equal(whole, got)
    assert CheckpointStore(tmp_path / "full", "lora").newest().name == "step-000012"
    assert not list((tmp_path / "full").rglob("*.tmp"))


class Clock:
    """A clock that tests wind."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(budget_module, "process_seconds", lambda: self.now)
        monkeypatch.setattr(budget_module.time, "monotonic", lambda: self.now)


def test_the_schedule_ends_where_the_time_does(monkeypatch):
    clock, device = Clock(monkeypatch), torch.device("cpu")
    args = TrainArgs(learning_rate=1.0, warmup_steps=10)
    for n_steps, max_seconds, least, most in ((1000, 500.0, 220, 225), (100, 500.0, 100, 100)):
        clock.now = 20.0  # the model is loaded
        budget, rates = Budget(max_seconds), []
        length = length_of(TrainArgs(max_steps=n_steps), 10**6)
        while len(rates) < n_steps and budget.has_time_for_a_step():
            budget.begin_step(device)
            rates.append(learning_rate(len(rates) + 1, budget.cut(length, len(rates)).n_steps, args))
            clock.now += 30.0 if len(rates) == 1 else 2.0  # the first step compiles
        assert least <= len(rates) <= most and clock.now <= max_seconds
        assert max(rates) > 0.99 and rates[-1] < 0.001
        if n_steps == len(rates):
            assert rates == [learning_rate(s, n_steps, args) for s in range(1, n_steps + 1)]


TAKEN = {"seconds": 0.0, "validation_seconds": 30.0, "save_seconds": 2.0, "finish_seconds": 8.0}


def test_time_that_a_validation_took_is_kept_for_the_last_one_and_not_spent_twice(monkeypatch):
    clock, budget = Clock(monkeypatch), Budget(100.0)
    budget.take_up(**TAKEN)  # 1.2 * 40 and 5 seconds are kept
    for now, step, validation in ((40.0, True, True), (48.0, False, True), (80.0, False, True), (84.0, False, False)):
        clock.now = now
        assert (budget.has_time_for_a_step(), budget.has_time_to_validate()) == (step, validation), now
    assert Budget().has_time_to_validate() and Budget().has_time_for_a_step()


def test_what_comes_after_the_training_is_kept_in_reserve(tmp_path, monkeypatch):
    """Once more the loss, for the mean of the checkpoints, without the score of a task that a validation has, too."""
    clock = Clock(monkeypatch)

    def finish(place):
        clock.now += 8.0

    for again, kept in ((False, 8.0), (True, 38.0)):
        budget = Budget(1000.0, finish, again)
        budget.loss_seconds, budget.validation_seconds = 30.0, 100.0
        assert budget.rehearse_finish(tmp_path) == 8.0
        assert budget.finish_seconds == kept and budget.reserve == pytest.approx(1.2 * (100 + kept) + 5)
        assert budget.deadline_in() - budget.left == pytest.approx(budget.reserve)
    assert Budget(None, finish).rehearse_finish(tmp_path) == 0.0  # without a limit nobody asks


def test_what_a_killed_process_used_since_its_last_checkpoint_counts(tmp_path, monkeypatch):
    clock, ledger = Clock(monkeypatch), tmp_path / "seconds_used.txt"
    budget = Budget(1000.0, ledger=ledger)
    for clock.now in (10.0, 12.0, 300.0):
        budget.begin_step(torch.device("cpu"))
    clock.now = 20.0  # another process
    again = Budget(1000.0, ledger=ledger)
    again.take_up(**TAKEN | {"seconds": 150.0})
    assert again.used == 320.0
    ledger.write_text("")  # by a full disk
    again.take_up(**TAKEN | {"seconds": 150.0})
    assert again.used == 170.0


def test_time_used_before_a_resume_counts(tmp_path):
    _, progress = trained(tmp_path / "out", epochs=2)
    assert progress.seconds > 0
    budget = Budget(3600.0)
    before = budget.left
    budget.take_up(**TAKEN | {"seconds": 1800.0})
    assert before - budget.left == pytest.approx(1800 + 1.2 * 40, abs=1)


def test_no_clock_that_somebody_sets_counts(monkeypatch):
    first = budget_module.process_seconds()
    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert 0 < first <= budget_module.process_seconds() < first + 60
    began = float(subprocess.check_output(["ps", "-o", "etimes=", "-p", str(os.getpid())]))
    assert began == pytest.approx(first, abs=5)


def test_a_run_without_gain_ends_and_the_best_stays(tmp_path):
    validation = ValidationArgs(eval_interval=1, early_stopping_patience=3)
    _, progress = trained(tmp_path / "out", data=make_samples(24), validation=validation, epochs=50, learning_rate=0.5)
    assert progress.step < 300 and progress.n_without_gain == 3 and progress.best_step == progress.step - 3
    assert read_progress(tmp_path / "out" / "best").step == progress.best_step


def test_a_loss_that_is_not_a_number_is_no_gain():
    progress = Progress(step=5).validated(float("nan"))
    assert progress.best_step is None and progress.n_without_gain == 1
    assert progress.validated(1.0).validated(float("nan")).best == 1.0


def test_a_score_that_draws_random_numbers_changes_nothing(tmp_path):
    validation = ValidationArgs(eval_interval=2)
    plain, _ = trained(tmp_path / "plain", validation=validation)
    drawn, _ = trained(tmp_path / "drawn", validation=validation, score=lambda: torch.rand(1).item())
    assert_equal(plain, drawn)


def test_a_score_decides_what_is_best(tmp_path, capsys):
    scores = iter([0.1, 0.4, 0.3, 0.4, 0.2, 0.9, 0.9])
    validation = ValidationArgs(eval_interval=2)
    _, progress = trained(tmp_path / "out", validation=validation, score=lambda: next(scores))
    assert (progress.best_step, progress.best) == (10, 0.9)
    assert "\nstep 2: score 0.4000\n" in capsys.readouterr().out
    assert read_progress(tmp_path / "out" / "best").step == 10


@pytest.mark.parametrize("text", ["24", "1:00", "a:00:00", "00:60:00", "00:00:00", "-1:00:00"])
def test_times_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="expected HH:MM:SS"):
        TrainArgs(max_time=text)


def test_packing_changes_nothing_but_speed(tmp_path):
    packed, _ = trained(tmp_path / "packed", model_with_lora(0), micro_batch_tokens=1000)
    alone, _ = trained(tmp_path / "alone", model_with_lora(0), packing=False)
    for name in packed:
        torch.testing.assert_close(packed[name], alone[name], rtol=1e-3, atol=1e-5)
