"""What a run costs besides its steps grows no faster than what it has to do: counted, not timed."""

import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from damage import outcome_of
from gradient_steps import gradients_of, loss_of, model_of
from jobs import DATA, samples_of
from tiny import TINY
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.data import packing as packing_module
from lit_gpt.data.batches import Order, batch_of
from lit_gpt.data.packing import Packing, fullest, packs
from lit_gpt.data.store import IGNORE, Samples, Writer, stack
from lit_gpt.errors import UserError
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.planning.probe import chosen
from lit_gpt.planning.work import COUNTED, targets_by_sample, work_of
from lit_gpt.training.batching import require_room_for_a_step
from lit_gpt.training.length import Length
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.run.average import require_checkpoints
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.validation import validate


def counted_by_sample(samples):
    """The targets of each sample, one by one."""
    return [int((np.asarray(labels[1:]) != IGNORE).sum()) for _, labels in (samples[i] for i in range(len(samples)))]


@pytest.mark.parametrize("lengths", [[5, 1, 9, 2], [0, 3, 0, 0, 4, 0], [], [COUNTED + 7, 3], [3, COUNTED, 2, 0]])
def test_targets_are_counted_by_sample_a_part_at_a_time(lengths):
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *lengths])
    labels = np.where(rng.random(offsets[-1]) < 0.4, IGNORE, 7).astype(np.int32)
    samples = Samples(labels, labels, offsets)
    assert targets_by_sample(samples).tolist() == counted_by_sample(samples)


def test_counting_targets_takes_no_memory_for_tokens_that_are_on_the_disk(tmp_path):
    with Writer(tmp_path, "train") as writer:
        for _ in range(40):
            writer.add([([1] * 1000, [7] * 1000)] * 250)
    parts = [np.load(tmp_path / f"train.{name}.npy", mmap_mode="r") for name in ("ids", "labels", "offsets")]
    tracemalloc.start()
    found = targets_by_sample(Samples(*parts))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 10_000 and set(found) == {999}
    assert len(parts[0]) == 10**7 and peak < 12 * COUNTED, peak


def test_a_validation_packs_a_bounded_number_of_samples_at_a_time(monkeypatch):
    """So that its cost grows with their number, and not with the square of that; its loss is the mean all the same."""
    ids = [3, 9, 4]
    data = stack([([i % 60 + 1, *ids], [IGNORE, IGNORE, *ids[1:]]) for i in range(1700)])
    torch.manual_seed(0)
    model, compared = GPT(TINY), []
    filled = packing_module.filled

    def spied(lengths, order, *rest):
        groups = filled(lengths, order, *rest)
        compared.append(len(order) * len(groups))  # each sample is held against each group, at most
        return groups

    monkeypatch.setattr(packing_module, "filled", spied)
    fabric = Fabric(accelerator="cpu", devices=1)
    loss = validate(fabric, model, data, TrainArgs(micro_batch_tokens=16), ValidationArgs())
    assert sum(compared) <= len(data) * 1024 // 4 < len(data) * len(data) // 4  # 4 samples a group
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(np.stack([data[i][0] for i in range(60)])).long())[:, 1:-1]
        each = F.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[1:]).repeat(60), reduction="none")
        each = each.view(60, 2).mean(1)
    weights = torch.tensor([(i < 1700 % 60) + 1700 // 60 for i in range(60)]) / 1700
    assert loss == pytest.approx(float((each * weights).sum()), rel=1e-5)


class Waits(TorchDispatchMode):
    """Counts how often the host asks a tensor whether something is so."""

    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("optimizer", "asked"), [("adamw", 0), ("adamw8bit", 1)])
def test_the_host_asks_once_a_step_whether_the_gradient_is_finite_and_not_once_a_parameter(offload, optimizer, asked):
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes")
    model = model_of()
    gradients = gradients_of(model, offload_gradients=offload, optimizer=optimizer)
    loss_of(model).backward()
    before = model.lm_head.weight.detach().clone()
    with Waits() as waits:
        gradients.step(1)
    assert waits.n == asked and len(gradients.parameters) > 10
    assert not torch.equal(model.lm_head.weight, before)


HUGE = (
    {"max_steps": 10**6},
    {"batch_size": 10**12},
    {"batch_size": 10**12, "max_steps": 10},
    {"epochs": 1e9},
    {"max_iters": 10**12},
    {"micro_batch_size": 10**12},
    {"max_steps": 10**12, "save_interval": 1},
)
"""Flags of runs that are far too long, or whose steps are far too large."""


@pytest.mark.parametrize("flags", HUGE, ids=lambda flags: "-".join(flags))
def test_the_work_of_a_run_of_any_length_is_counted_in_little_memory(flags):
    train, validation = TrainArgs(**flags), ValidationArgs(eval_interval=1)

    def count():
        work = work_of(*DATA, train, validation, Packing(512), 3)
        lengths, order = DATA[0].lengths, Order(60, work.n_samples, 3)
        epochs, rest = divmod(work.n_samples, 60)
        of_the_last = order.permutation(epochs)[:rest]
        assert work.n_samples == train.n_samples(60) and work.n_steps == -(-work.n_samples // train.batch_size)
        assert work.n_tokens == epochs * int(lengths.sum()) + int(lengths[of_the_last].sum())
        assert 0 < work.n_tokens <= work.n_padded and work.n_computed <= work.n_tokens
        assert work.n_passes * 512 >= work.n_computed and work.largest <= 512
        assert work.n_saves == work.n_validations == work.n_steps + 1

    outcome = outcome_of(count, max_seconds=120)
    assert outcome.kind == "read" and outcome.n_bytes < 300e6, outcome


@pytest.mark.parametrize("flags", [{"batch_size": 10**12, "max_steps": 10**6}, {"batch_size": 18_000}])
def test_a_plan_looks_at_few_samples_however_many_a_step_has(monkeypatch, flags):
    """Work is counted, not time: samples whose prefixes are compared, and micro-batches that are made."""
    data, train, packing = samples_of(18_000), TrainArgs(**flags), Packing(512, 512)
    seen, made = [], []
    of = packing_module.prefixes_of
    spied = lambda samples, indices, packing: seen.append(len(indices)) or of(samples, indices, packing)  # noqa: E731
    for module in ("planning.work", "planning.probe", "data.batches", "training.loader"):
        monkeypatch.setattr(f"lit_gpt.{module}.prefixes_of", spied)
    monkeypatch.setattr("lit_gpt.planning.probe.batch_of", lambda *those: made.append(1) or batch_of(*those))
    work = work_of(data, DATA[1], train, ValidationArgs(), packing, 3)
    assert sum(seen) <= 2**14 and work.n_samples == train.n_samples(len(data))
    seen.clear()
    found = chosen(data, train.batch_size, packing, torch.device("cpu"))
    assert sum(seen) <= 2**14 and len(found) == len(made) <= 64
    assert found[0].n_computed == max(batch.n_computed for batch in found)
    seen.clear()
    loader = BatchLoader(GPT(TINY), data, train, device=torch.device("cpu"), seed=3, autocast=nullcontext)
    loader.shares(packing)
    assert loader.tokens_a_step() > 0 and sum(seen) <= 2 * 2**14


def test_the_largest_micro_batch_takes_the_longest_samples_that_fit():
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths, room, most = rng.integers(1, rng.integers(2, 90), 30), int(rng.integers(1, 200)), rng.integers(1, 20)
        picked, left = [], room
        for i in sorted(range(30), key=lambda i: -lengths[i]):
            if len(picked) < most and (not picked or lengths[i] <= left):
                picked.append(i)
                left -= lengths[i]
        assert fullest(lengths, room, int(most)) == picked


def test_what_is_assumed_of_later_samples_is_near_what_they_are(monkeypatch):
    train, data = TrainArgs(batch_size=16, epochs=40), samples_of(300)
    exact = work_of(data, DATA[1], train, ValidationArgs(), Packing(512), 3)
    monkeypatch.setattr("lit_gpt.planning.work._LISTED_SAMPLES", 1000)
    monkeypatch.setattr("lit_gpt.planning.work._PACKED_SAMPLES", 200)
    few = work_of(data, DATA[1], train, ValidationArgs(), Packing(512), 3)
    assert (few.n_tokens, few.n_targets, few.n_steps) == (exact.n_tokens, exact.n_targets, exact.n_steps)
    assert few.n_padded == pytest.approx(exact.n_padded, rel=0.02)
    assert few.n_passes == pytest.approx(exact.n_passes, rel=0.05)


def test_validations_and_saves_are_counted_as_they_are_due():
    rng = np.random.default_rng(1)
    for n_steps, save, evaluate in rng.integers(1, 40, (40, 3)).tolist():
        train, validation = TrainArgs(max_steps=n_steps, save_interval=save), ValidationArgs(eval_interval=evaluate)
        work = work_of(*DATA, train, validation, Packing(512), 3)
        saves, validations = ({n_steps, *range(0, n_steps + 1, interval)} for interval in (save, evaluate))
        assert (work.n_validations, work.n_saves) == (len(validations), len(saves | validations))


def test_a_step_of_many_samples_is_packed_and_one_too_large_for_the_memory_is_refused():
    lengths = np.random.default_rng(0).integers(20, 300, 50_000)

    def pack():
        assert sum(map(len, packs(lengths, range(50_000), 512))) == 50_000

    assert outcome_of(pack, max_seconds=120).kind == "read"
    require_room_for_a_step(lengths, TrainArgs(batch_size=10**12), 50_000)  # the run has no more samples than that
    with pytest.raises(
        UserError, match=r"--batch_size 1,000,000,000,000: a step of .* does not fit the .* GB of memory"
    ):
        require_room_for_a_step(lengths, TrainArgs(batch_size=10**12), 10**13)


@pytest.mark.parametrize("flags", [{"epochs": 1e16}, {"epochs": float("inf")}, {"max_steps": 10**30}])
def test_numbers_without_end_are_refused(flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))} .* must be at most 1e.15"):
        TrainArgs(**flags)


def test_neither_checkpoints_nor_steps_that_fit_the_time_are_listed():
    require_checkpoints(TrainArgs(average_last=2, save_interval=1), 10**18)
    budget = Budget(max_seconds=3600.0)
    budget.expected_seconds = 1.0
    length = Length(step=0, seen=0, batch_size=1, n_samples=10**21, n_steps=10**21, ended_by="epochs")
    assert 0 < budget.cut(length, 0).n_steps < 3600
