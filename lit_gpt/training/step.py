"""The gradients of one optimizer step: all of its micro-batches, or nothing of it."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from lightning.fabric import Fabric
from torch import Tensor

from lit_gpt.data.batches import Batch, batch_of
from lit_gpt.model import GPT
from lit_gpt.resources import is_out_of_memory
from lit_gpt.training.gradients import Gradients
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.randomness import random_states, set_random_states, undisturbed
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.gauges import wait
from lit_gpt.training.run.monitor import Monitor

_Result = TypeVar("_Result")


def accumulate(
    fabric: Fabric,
    model: GPT,
    loader: BatchLoader,
    step: int,
    gradients: Gradients,
    monitor: Monitor,
    learning_rate: float,
    stopped: Callable[[], Any],
) -> bool:
    """Add up the gradients of a step, with smaller micro-batches each time the memory runs out.

    Args:
        learning_rate: of the step, for the monitor.
        stopped: asked after each micro-batch.

    Returns:
        False if it was stopped before its last micro-batch; nothing of it is left then, and it can be taken again.

    Raises:
        RuntimeError: no memory, and nothing smaller to try; nothing of the step is left then, too.
    """
    before, mark = random_states(fabric.device), monitor.mark()

    def undo() -> None:
        gradients.zero()
        set_random_states(before, fabric.device)
        monitor.restore(mark)

    def all_of_it() -> bool:
        batches = loader.batches(step)
        n_targets = sum(batch.n_targets for batch in batches)
        for i, batch in enumerate(batches, 1):
            loss = _forward_backward(fabric, model, loader, batch=batch, n_targets=n_targets)
            monitor.iterated(step, batch, loss, learning_rate, i == len(batches))
            if i < len(batches) and stopped():
                return False
        return True

    complete = _in_memory(all_of_it, loader, undo)
    if not complete:
        undo()
    return complete


def rehearse(fabric: Fabric, model: GPT, loader: BatchLoader, gradients: Gradients, budget: Budget) -> None:
    """Try the largest micro-batch forward and backward and let the optimizer take its memory; changes nothing.

    Where there is a limit and no step was timed yet, do it again and tell the budget what a step will take by that.

    Raises:
        RuntimeError: no memory, and nothing smaller to try.
    """
    model.train()

    def largest() -> float:
        """Seconds that a step is expected to take."""
        batch = batch_of(loader.data, loader.largest()).to(fabric.device)
        wait(fabric.device)
        began = time.monotonic()
        _forward_backward(fabric, model, loader, batch=batch, n_targets=batch.n_targets)
        wait(fabric.device)
        computed = time.monotonic()
        gradients.zero()
        gradients.allocate()
        wait(fabric.device)
        return (computed - began) * loader.tokens_a_step() / batch.n_computed + time.monotonic() - computed

    with undisturbed(fabric.device):
        _in_memory(largest, loader, gradients.zero)
        if budget.max_seconds is not None and not budget.step_seconds:
            budget.expected_seconds = largest()  # the first time, kernels were compiled and memory was asked for


def _in_memory(work: Callable[[], _Result], loader: BatchLoader, undo: Callable[[], None]) -> _Result:
    """What `work` returns, with smaller micro-batches each time the memory runs out.

    Args:
        undo: takes back what was done of it when that happened.

    Raises:
        RuntimeError: no memory, and nothing smaller to try; nothing of the work is left then.
    """
    while True:
        try:
            return work()
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            failed = e.with_traceback(None)  # its frames hold on to the memory
        undo()
        if not loader.shrink():
            raise failed
        undo()  # a new recording has drawn random numbers


def _forward_backward(fabric: Fabric, model: GPT, loader: BatchLoader, batch: Batch, n_targets: int) -> Tensor:
    """Add the gradients of a micro-batch to what is there; its loss, summed over its targets.

    Args:
        n_targets: of the whole step: divided by these, what shares a forward pass changes nothing.
    """
    with fabric.autocast():
        loss = loss_sum(model, batch, loader.hidden_of)
    fabric.backward(loss / max(1, n_targets))
    return loss.detach()
