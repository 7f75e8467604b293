"""The loss on the validation set, and what makes a checkpoint the best."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.data.batches import Idle, micro_batches
from lit_gpt.data.store import Samples
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.parallel.shards import is_sharded
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.batching import packing_of
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.randomness import undisturbed
from lit_gpt.training.run.progress import Progress
from lit_gpt.training.run.session import Session
from lit_gpt.training.run.stopping import Stop

AT_ONCE = 512
"""Number of samples that are packed together: packing takes time that grows with its square."""


def validated(
    fabric: Fabric,
    model: GPT,
    data: Samples,
    progress: Progress,
    *,
    session: Session,
    train: TrainArgs,
    validation: ValidationArgs,
    stop: Stop,
) -> Progress:
    """Returns where the run is after a validation, with the score that decides what is best.

    Args:
        stop: a signal ends the validation without a result; `progress` is returned as it was.
    """
    session.monitor.report()
    began = time.monotonic()
    team = session.team
    loss = validate(fabric, model, data=data, train=train, validation=validation, stopped=stop.agree, team=team)
    if loss is None:
        return progress
    loss_seconds = time.monotonic() - began
    with undisturbed(fabric.device):
        score = session.score and team.first(session.score)  # where each device has the whole model, one answers
    seconds = time.monotonic() - began
    session.budget.validated(seconds, loss_seconds)
    session.monitor.validated(progress.step, loss, seconds)
    if score is not None:
        session.monitor.say(f"step {progress.step}: {validation.best_task or 'score'} {score:.4f}")
    return progress.validated(loss, score)


def n_validated(n_samples: int, train: TrainArgs, validation: ValidationArgs) -> int:
    """Returns how many of the validation set's samples a validation takes: `eval_iters` times `micro_batch_size`."""
    if validation.eval_iters is None:
        return n_samples
    return min(n_samples, validation.eval_iters * train.micro_batch_size)


@torch.no_grad()
def validate(
    fabric: Fabric,
    model: GPT,
    data: Samples,
    train: TrainArgs,
    validation: ValidationArgs,
    stopped: Callable[[], Any] = lambda: False,
    team: Team = ALONE,
) -> float | None:
    """Returns the mean loss per target token of the validation set, or of its first `n_validated` samples.

    Args:
        stopped: called after each micro-batch; where it returns something true, the result is None.
        team: the processes among which the micro-batches are dealt.
    """
    model.eval()
    n_samples = n_validated(len(data), train, validation)
    with fabric.autocast():
        packing = packing_of(model, train, fabric.device)
    parts = (range(start, min(start + AT_ONCE, n_samples)) for start in range(0, n_samples, AT_ONCE))
    total, n_targets = torch.zeros((), device=fabric.device, dtype=torch.float32), 0
    batches = (batch for part in parts for batch in micro_batches(data, part, packing))
    while round_ := list(islice(batches, team.size)):
        batch = round_[team.rank] if team.rank < len(round_) else Idle.make() if is_sharded(model) else None
        if batch is not None:
            with fabric.autocast():
                total += loss_sum(model, batch.to(fabric.device))
            n_targets += batch.n_targets
        if stopped():
            return None
    loss, n_targets = team.total(total.item(), n_targets)
    return loss / max(1, n_targets)
