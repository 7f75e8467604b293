"""Times a few steps of a run that is not started, to learn what this machine reaches."""

import time
from collections.abc import Callable
from itertools import cycle

import torch

from lit_gpt.args import TrainArgs
from lit_gpt.data.batches import Batch, batch_of
from lit_gpt.data.packing import LOOKED_AT, Packing, Prefixes, n_computed, packs, prefixes_of
from lit_gpt.data.store import Samples
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.planning.seconds import WRITING, Rates
from lit_gpt.training.flops import forward_flops, training_flops
from lit_gpt.training.graphs import recorded_hidden
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.offload import make_gradients
from lit_gpt.training.optimizer import prepare_optimizer
from lit_gpt.training.run.gauges import wait
from lit_gpt.training.step import forward_backward
from lit_gpt.training.validation import AT_ONCE

_LEAST_SECONDS, _MOST_SECONDS = 6.0, 30.0
"""Seconds of timed passes after which the probe stops: the first after enough passes, the second after any."""
_LEAST_PASSES = 3
_MOST_BATCHES = 64
STEPS = 4
"""Optimizer steps whose forward passes are timed, again and again."""


def probe(
    fabric: Fabric,
    model: GPT,
    counted: GPT,
    data: tuple[Samples, Samples],
    train: TrainArgs,
    packing: Packing,
    starting: float,
    saved_bytes: int,
) -> Rates:
    """Trains for a few passes at a learning rate of 0 and times them; the model is of no use afterwards.

    Args:
        counted: the same model on the meta device, for counting operations.
        data: training and validation samples.
        packing: how samples share a forward pass.
        starting: seconds from the command to here.
        saved_bytes: bytes of a checkpoint.
    """
    train_data, val_data = data
    optimizer = prepare_optimizer(fabric, model, train)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients = make_gradients(fabric, model, optimizer, train)
    with fabric.autocast():
        hidden_of = recorded_hidden(model, packing, train_data.computed, train.records)
    model.train()
    train_data = train_data.sharing(packing.share_up_to)
    before = time.perf_counter()
    batches = chosen(train_data, train.batch_size, packing, fabric.device)

    def run_one(batch: Batch) -> None:
        forward_backward(fabric, model, batch, batch.n_targets, hidden_of=hidden_of)

    def largest_step() -> tuple[float, float]:
        """Returns the seconds of a pass of the largest micro-batch, and those of the optimizer's step after it."""
        passed = _timed(fabric.device, lambda: run_one(batches[0]))
        return passed, _timed(fabric.device, lambda: gradients.step(0))

    seconds, step_seconds = largest_step()
    n, flops = 1, training_flops(counted, *size(batches[0]), model.n_recomputed)
    if seconds <= _MOST_SECONDS or fabric.device.type == "cuda":  # a warm-up, of which a longer pass has no need
        step_seconds = min(step_seconds, largest_step()[1])
        n, seconds, flops = 0, 0.0, 0.0
    starting += time.perf_counter() - before if fabric.device.type == "cuda" else 0.0  # compiling is no warm-up's
    following = cycle(batches[1:] + batches[:1])
    while seconds <= _MOST_SECONDS and (seconds <= _LEAST_SECONDS or n < _LEAST_PASSES):
        batch = next(following)
        seconds += _timed(fabric.device, lambda batch=batch: run_one(batch))
        flops += training_flops(counted, *size(batch), model.n_recomputed)
        n += 1
    validation = _validation_rate(fabric, model, counted, data=val_data, packing=packing)
    source = f"from {n} forward and backward passes on this machine, {flops / seconds / 1e12:.3g} TFLOP/s"
    return Rates(
        training=flops / seconds,
        validation=validation,
        optimizer_seconds=step_seconds,
        starting=starting,
        saving=saved_bytes / WRITING,
        shortest=0.0,
        source=source,
    )


def _validation_rate(fabric: Fabric, model: GPT, counted: GPT, data: Samples, packing: Packing) -> float:
    """Returns the operations a second of forward passes in evaluation."""
    model.eval()
    flops = seconds = 0.0
    with torch.no_grad(), fabric.autocast():
        for batch in chosen(data, min(len(data), AT_ONCE), packing, fabric.device)[:4]:
            seconds += _timed(fabric.device, lambda batch=batch: loss_sum(model, batch))
            flops += forward_flops(counted, *size(batch))
            if seconds > _LEAST_SECONDS:
                break
    return flops / seconds


def chosen(data: Samples, batch_size: int, packing: Packing, device: torch.device) -> list[Batch]:
    """Returns micro-batches of a few steps as the run would have them, the largest first; of large steps only some."""
    at_once = min(batch_size, LOOKED_AT)
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: STEPS * at_once].tolist()
    data = data.sharing(packing.share_up_to)
    lengths = data.computed
    groups: list[tuple[list[int], Prefixes]] = []
    for start in range(0, len(rows), at_once):
        prefixes = prefixes_of(data, part := rows[start : start + at_once], packing)
        groups += [(group, prefixes) for group in packs(lengths, part, packing.max_tokens, prefixes)]
    largest = max(range(len(groups)), key=lambda i: n_computed(lengths, *groups[i]))
    groups.insert(0, groups.pop(largest))
    return [batch_of(data, *those).to(device) for those in groups[:_MOST_BATCHES]]


def size(batch: Batch) -> tuple[int, int, float]:
    """Returns computed tokens, targets and the sum of squared lengths of a batch, shared prefixes counted once."""
    d = batch.documents
    again = sum((m - 1) * n * n for n, m in zip(d.lengths, d.n_sharing, strict=False))
    return batch.n_computed, batch.n_targets, float(sum(n * n for n in d.computed) - again)


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    """Returns the seconds that `work` takes until the device is done."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start
