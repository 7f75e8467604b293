"""What ends a run is known before its first step, said, and what the learning rate follows: steps, or the time."""

import contextlib
import re

import pytest
import torch
from tiny import TINY

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.data.store import stack
from lit_gpt.lightning import Fabric
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.training.length import Length, length_of, outlook
from lit_gpt.training.loop import fit
from lit_gpt.training.optimizer import learning_rate
from lit_gpt.training.run import budget as budget_module
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.gauges import Gauges
from lit_gpt.training.run.monitor import Monitor
from lit_gpt.training.run.session import Session

PASS, VALIDATION = 2.0, 3.0
"""Seconds of a sample's forward and backward pass, and of its forward pass in a validation."""
STARTED = 16.0
"""Seconds from the start of a process to its first forward pass."""


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands but for forward passes."""
    now = [0.0]
    monkeypatch.setattr(budget_module, "process_seconds", lambda: now[0])
    monkeypatch.setattr("lit_gpt.training.run.gauges.process_seconds", lambda: now[0])
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(budget_module.time, name, lambda: now[0])
    return now


def trained(out, clock, max_time, killed_at=None, eval_interval=10**6, longest=4, **train):
    """The learning rate of each step, by its number; the run goes on from the newest checkpoint in `out`.

    Args:
        killed_at: the step in which the process is killed.
        longest: tokens of one sample, which takes as long as those of 4 tokens.
    """
    out.mkdir(exist_ok=True)
    clock[0] = STARTED
    torch.manual_seed(0)
    model = GPT(TINY)
    lora.inject(model, LoRAArgs(lora_dropout=0.0))
    ids = [5, 6, 7, 8]
    data, checkpoint_store = stack([(ids, ids)] * 39 + [(ids * (longest // 4),) * 2]), CheckpointStore(out, "lora")
    rates: dict[int, float] = {}

    def passed(module, inputs):
        clock[0] += PASS if model.training else VALIDATION

    model.transformer.wte.register_forward_pre_hook(passed)
    flags = {"learning_rate": 1.0, "batch_size": 4, "packing": False, "compile": False, "save_interval": 4}
    args = TrainArgs(**flags | {"max_time": max_time, "max_steps": 1000} | train)
    resumed = checkpoint_store.newest()
    budget = Budget(
        args.max_seconds, ledger=out / "seconds.txt", eval_interval=eval_interval, save_interval=args.save_interval
    )
    gauges = Gauges(
        torch.device("cpu"), 1, time_left=budget.deadline_in if max_time else None, max_seconds=budget.max_seconds
    )
    monitor = Monitor(out, args.n_samples(40), 1, goes_on=resumed is not None, gauges=gauges)
    iterated = monitor.iterated

    def noted(step, batch, loss, learning_rate, is_step):
        if step == killed_at:
            raise Killed
        rates[step] = learning_rate
        iterated(step, batch, loss, learning_rate, is_step)

    monitor.iterated = noted
    session = Session(checkpoint_store, monitor, budget, resumed)
    validation = ValidationArgs(eval_interval=eval_interval)
    with contextlib.suppress(Killed):
        fit(Fabric(accelerator="cpu", devices=1), model, data, stack([(ids, ids)] * 2), session, args, validation, 7)
    monitor.close()
    return rates


def true_schedule(n_steps, **train):
    args = TrainArgs(learning_rate=1.0, **train)
    return {step: pytest.approx(learning_rate(step, n_steps, args)) for step in range(1, n_steps + 1)}


@pytest.mark.parametrize("max_time", ["00:03:00", "00:01:30"])
@pytest.mark.parametrize("eval_interval", [10**6, 5, 1])
def test_under_max_time_the_learning_rate_is_that_of_the_steps_that_the_time_has_room_for(
    tmp_path, clock, max_time, eval_interval
):
    """From the first step on: before a step was timed, the trial of the largest micro-batch says what one takes."""
    rates = trained(tmp_path / "out", clock, max_time, eval_interval=eval_interval)
    assert rates == true_schedule(len(rates))
    assert clock[0] <= TrainArgs(max_time=max_time).max_seconds
    assert len(rates) > 2 and rates[len(rates)] < max(rates.values())


@pytest.mark.parametrize("killed_at", [2, 9])
def test_right_after_a_resume_the_learning_rate_is_that_of_the_same_schedule(tmp_path, clock, killed_at, monkeypatch):
    """A start that takes no time, so that the run has as many steps as the one that was never killed."""
    whole = trained(tmp_path / "whole", clock, "00:02:30")
    assert whole == true_schedule(len(whole)) and len(whole) > 12
    rates = trained(tmp_path / "out", clock, "00:02:30", killed_at, save_interval=1)
    monkeypatch.setattr(f"{__name__}.STARTED", 0.0)
    monkeypatch.setattr("lit_gpt.training.loader.batch_of", no_time(clock))
    rates |= trained(tmp_path / "out", clock, "00:02:30")
    assert rates == whole


def test_what_a_checkpoint_says_of_a_step_counts_more_than_the_trial_of_the_process_that_goes_on(tmp_path, clock):
    """The largest micro-batch, which is tried, says too little here: its sample has four times the tokens."""
    flags = {"longest": 16, "save_interval": 1}
    rates = trained(tmp_path / "out", clock, "00:03:00", killed_at=9, **flags)
    again = trained(tmp_path / "out", clock, "00:03:00", **flags)
    assert rates[1] != true_schedule(17)[1] or rates[2] != true_schedule(17)[2]
    n_steps = max(again)
    assert again == {step: rate for step, rate in true_schedule(n_steps).items() if step >= 9}


def no_time(clock):
    """The batch of the trial before the first step, which then takes none."""
    from lit_gpt.data.batches import batch_of

    def made(*args):
        clock[0] -= PASS
        return batch_of(*args)

    return made


def test_a_start_that_takes_time_again_shortens_the_schedule_at_once_and_not_after_two_steps(tmp_path, clock):
    rates = trained(tmp_path / "out", clock, "00:03:00", killed_at=9)
    again = trained(tmp_path / "out", clock, "00:03:00")
    n_steps = max(again)
    assert min(again) == 9 and n_steps < 17
    assert again == {step: rate for step, rate in true_schedule(n_steps).items() if step >= 9}
    assert rates | again != true_schedule(n_steps)


def test_a_run_says_before_its_first_step_how_many_it_will_have_and_what_ends_it(tmp_path, clock, capsys):
    rates = trained(tmp_path / "out", clock, "00:01:30")
    said = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(said) if line.startswith("iter 1 step 1: "))
    assert f"{len(rates)} optimizer steps of 4 samples, then --max_time ends the run" in said[:first]
    assert f"{len(rates)} optimizer steps: too few to learn much; raise --max_time, which ends the run" in said[:first]
    lines = [line for line in said if re.match(r"iter \d+ step \d+: loss", line)]
    assert f", 1/{len(rates)} steps, 0:01:" in lines[0] and lines[0].endswith("left of 0:01:30 (--max_time ends it)")
    assert f", {len(rates)}/{len(rates)} steps, 0:00:16 left of" in lines[-1]  # for the last validation


def test_the_line_of_a_run_that_its_epochs_end_says_so(tmp_path, clock, capsys):
    trained(tmp_path / "out", clock, None, max_steps=None, epochs=4)
    said = capsys.readouterr().out
    assert "40 optimizer steps of 4 samples, then --epochs ends the run" in said and "too few" not in said
    lines = [line for line in said.splitlines() if re.match(r"iter \d+ step \d+: loss", line)]
    assert lines[4].endswith(", 2/40 steps, 0:05:10 left (--epochs ends it)"), lines[4]


def test_of_limits_the_first_one_reached_is_named():
    for flags, name, n_steps in (
        ({}, "max_iters", 1563),
        ({"epochs": 2}, "epochs", 5),
        ({"epochs": 2, "max_steps": 3}, "max_steps", 3),
        ({"max_steps": 30, "max_iters": 33}, "max_iters", 2),
    ):
        length = length_of(TrainArgs(**flags), 300)
        assert (length.ended_by, length.n_steps) == (name, n_steps)


@pytest.mark.parametrize("n_steps", [1, 6, 29, 30, 1000])
@pytest.mark.parametrize("batch_size", [8, 128])
def test_too_few_steps_to_learn_are_said_with_what_gives_more(n_steps, batch_size):
    length = Length(0, 0, batch_size, n_steps * batch_size, n_steps, "epochs")
    first, *rest = outlook(0, length)
    assert first.startswith(f"{n_steps:,} optimizer step") and "--epochs ends the run" in first
    assert len(rest) == (n_steps < 30)
    for line in rest:
        small = "try --batch_size 8, or for LoRA --config finetune/recipes/small_data.yaml"
        assert line.endswith(small if batch_size > 8 else "raise --epochs, which ends the run")


def test_a_bar_fills_up_to_what_ends_the_run(tmp_path, monkeypatch):
    """A run of 1,563 steps that has time for 6 is over at 100 %."""
    monitor = Monitor(tmp_path, 200_000, 1)
    length = length_of(TrainArgs(), 300)
    monitor.expect(0, length.cut(6, "max_time"))
    assert monitor.n_samples == monitor.gauges.n_samples == 6 * 128
    monitor.close()
