"""The forward and backward pass of a micro-batch, and how a step is tried again when the memory runs out."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import Tensor

from lit_gpt.data.batches import Batch
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.parallel.team import Team
from lit_gpt.resources import is_out_of_memory
from lit_gpt.training.gradients import Gradients
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.loss import NEXT_TOKEN, Hidden, Objective
from lit_gpt.training.randomness import random_states, set_random_states, undisturbed
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.gauges import wait
from lit_gpt.training.run.monitor import Monitor


def forward_backward(
    fabric: Fabric,
    model: GPT,
    batch: Batch,
    n_terms: int,
    *,
    hidden_of: Hidden | None = None,
    objective: Objective = NEXT_TOKEN,
) -> Tensor:
    """Adds the gradients of a micro-batch to those that are there; returns its loss, summed over its terms.

    With an objective that has figures, these follow the loss, (1 + n,).

    Args:
        n_terms: terms of the loss of the whole optimizer step: target tokens, or pairs. Dividing by them makes the sum
            of the gradients independent of how the step is cut into micro-batches.
        hidden_of: does the work of `model.hidden`, where that is recorded as a CUDA graph.
    """
    with fabric.autocast():
        loss, figures = objective(model, batch, hidden_of)
    fabric.backward(loss / max(1, n_terms))
    return torch.cat([loss.detach()[None], figures]) if len(figures) else loss.detach()


_LONG = 5.0
"""Seconds of a pass on a CPU of which warming up takes a small part."""


class _AbandonedError(Exception):
    """Leaves the `with` block of an attempt."""


class _Attempt:
    """A context manager around the micro-batches of a step: it suppresses an out-of-memory error and `abandon`."""

    def __init__(self) -> None:
        self.complete = False
        """Whether the block ran to its end."""
        self.failure: RuntimeError | None = None
        """The out-of-memory error that ended the block."""

    def abandon(self) -> None:
        """Leaves the block; `attempts` then undoes what was done of the step, which can be taken again later."""
        raise _AbandonedError

    def agree(self, team: Team) -> None:
        """Has the attempt fail in all processes if the memory ran out in one of them."""
        out_of_memory = [rank for rank, failed in enumerate(team.every(self.failure is not None)) if failed]
        if out_of_memory:
            self.complete = False
            self.failure = self.failure or torch.OutOfMemoryError(f"rank {out_of_memory[0]} ran out of memory")

    def __enter__(self) -> "_Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.complete = error is None
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            self.failure = error.with_traceback(None)  # its frames hold on to the memory
        return isinstance(error, _AbandonedError) or self.failure is not None


def attempts(fabric: Fabric, loader: BatchLoader, gradients: Gradients, monitor: Monitor) -> Iterator[_Attempt]:
    """Yields an attempt at a step, and another one with smaller micro-batches each time the memory runs out.

    An attempt that is not complete leaves nothing behind: no gradients, no random numbers drawn, no figures counted.

    Raises:
        RuntimeError: out of memory, with the smallest micro-batches and all blocks recomputed.
    """
    before, mark = random_states(fabric.device), monitor.mark()

    def undo() -> None:
        gradients.zero()
        set_random_states(before, fabric.device)
        monitor.restore(mark)

    yield from _attempts(loader, undo)


def _attempts(loader: BatchLoader, undo: Callable[[], None]) -> Iterator[_Attempt]:
    """Yields attempts until one does not run out of memory; `undo` takes back what an incomplete one did.

    An attempt of several processes is complete if it is in all of them.
    """
    while True:
        attempt = _Attempt()
        yield attempt
        if attempt.failure is not None and loader.sharded:  # the others wait for this device in the middle of a pass
            raise attempt.failure
        if not loader.team.is_alone:
            attempt.agree(loader.team)
        if attempt.complete:
            return
        undo()
        if attempt.failure is None:  # abandoned
            return
        if not loader.shrink():
            raise attempt.failure
        undo()  # recording CUDA graphs anew has drawn random numbers


def try_largest_batch(
    fabric: Fabric,
    model: GPT,
    loader: BatchLoader,
    *,
    gradients: Gradients,
    budget: Budget,
    objective: Objective = NEXT_TOKEN,
) -> None:
    """Runs the largest micro-batch forward and backward and allocates the optimizer's state; trains nothing.

    With a time limit and no step timed yet, gives the budget the expected time of a step: that of a second run, since
    in the first one kernels are compiled and memory is allocated; where that is little of a long one, of the first.

    Raises:
        RuntimeError: out of memory, with the smallest micro-batches and all blocks recomputed.
    """
    model.train()

    def timed() -> float:
        """Returns the seconds that a step is expected to take."""
        batch = loader.largest_batch().to(fabric.device)
        wait(fabric.device)
        began = time.monotonic()
        forward_backward(fabric, model, batch, batch.n_terms, hidden_of=loader.hidden_of, objective=objective)
        wait(fabric.device)
        computed = time.monotonic()
        gradients.zero()
        gradients.allocate()
        wait(fabric.device)
        return (computed - began) * loader.tokens_a_step() / batch.n_computed + time.monotonic() - computed

    began, seconds = time.monotonic(), 0.0
    with undisturbed(fabric.device):
        for attempt in _attempts(loader, gradients.zero):
            with attempt:
                began = time.monotonic()
                seconds = timed()
        if budget.max_seconds is not None and not budget.step_seconds:
            is_long = time.monotonic() - began > _LONG and fabric.device.type == "cpu" and loader.team.is_alone
            budget.expected_seconds = seconds if is_long else timed()
