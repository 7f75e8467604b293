"""The gradients of one optimizer step: all of its micro-batches, or nothing of it."""

from collections.abc import Callable
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor

from lit_gpt.data.batches import Batch, batch_of
from lit_gpt.model import GPT
from lit_gpt.resources import is_out_of_memory
from lit_gpt.training.feed import Feed
from lit_gpt.training.gradients import Gradients
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.monitor import Monitor
from lit_gpt.training.randomness import random_states, set_random_states, undisturbed


def accumulate(
    fabric: Fabric,
    model: GPT,
    feed: Feed,
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
        batches = feed.batches(step)
        n_targets = sum(batch.n_targets for batch in batches)
        for i, batch in enumerate(batches, 1):
            loss = forward_backward(fabric, model, feed, batch, n_targets)
            monitor.iterated(step, batch, loss, learning_rate, i == len(batches))
            if i < len(batches) and stopped():
                return False
        return True

    while True:
        complete = attempt(all_of_it)
        if complete is True:
            return True
        undo()
        if complete is False:
            return False
        if not feed.shrink():
            raise complete
        undo()  # a new recording has drawn random numbers


def rehearse(fabric: Fabric, model: GPT, feed: Feed, gradients: Gradients) -> None:
    """Try the largest micro-batch forward and backward and let the optimizer take its memory; changes nothing.

    Raises:
        RuntimeError: no memory, and nothing smaller to try.
    """
    model.train()

    def largest() -> bool:
        batch = batch_of(feed.data, feed.largest()).to(fabric.device)
        forward_backward(fabric, model, feed, batch, batch.n_targets)
        gradients.zero()
        gradients.allocate()
        return True

    with undisturbed(fabric.device):
        while (failed := attempt(largest)) is not True:
            gradients.zero()
            if not feed.shrink():
                raise failed


def forward_backward(fabric: Fabric, model: GPT, feed: Feed, batch: Batch, n_targets: int) -> Tensor:
    """Add the gradients of a micro-batch to what is there; its loss, summed over its targets.

    Args:
        n_targets: of the whole step: divided by these, what shares a forward pass changes nothing.
    """
    with fabric.autocast():
        loss = loss_sum(model, batch, feed.hidden_of)
    fabric.backward(loss / max(1, n_targets))
    return loss.detach()


def attempt(work: Callable[[], bool]) -> bool | RuntimeError:
    """What `work` returns, or that the memory ran out, without the frames that hold on to it."""
    try:
        return work()
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        return e.with_traceback(None)
