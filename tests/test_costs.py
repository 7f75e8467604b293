"""What a run costs besides its steps grows no faster than what it has to do: counted, not timed."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradient_steps import gradients_of, loss_of, model_of
from lightning.fabric import Fabric
from tiny import TINY
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.data import packing as packing_module
from lit_gpt.data.store import IGNORE, Samples, Writer, stack
from lit_gpt.model import GPT
from lit_gpt.planning.work import COUNTED, targets_by_sample
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
