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
from lit_gpt.training.loss import NEXT_TOKEN, Objective
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
    objective: Objective = NEXT_TOKEN,
) -> Progress:
    """Returns where the run is after a validation, with the score that decides what is best.

    Args:
        stop: a signal ends the validation without a result; `progress` is returned as it was.
    """
    session.monitor.report()
    began = time.monotonic()
    team = session.team
    found = means(
        fabric, model, data, train=train, validation=validation, objective=objective, stopped=stop.agree, team=team
    )
    if found is None:
        return progress
    loss, figures = found[0], dict(zip(objective.figures, found[1:], strict=False))
    loss_seconds = time.monotonic() - began
    with undisturbed(fabric.device):
        score = session.score and team.first(session.score)  # where each device has the whole model, one answers
    seconds = time.monotonic() - began
    session.budget.validated(seconds, loss_seconds)
    session.monitor.validated(progress.step, loss, seconds, figures)
    if score is not None:
        session.monitor.say(f"step {progress.step}: {validation.best_task or 'score'} {score:.4f}")
    progress = progress.validated(loss, score, figures)
    if why := objective.ends(progress.first_figures, progress.figures):
        session.monitor.say(why)
    return progress


def n_validated(n_samples: int, train: TrainArgs, validation: ValidationArgs) -> int:
    """Returns how many of the validation set's samples a validation takes: `eval_iters` times `micro_batch_size`."""
    if validation.eval_iters is None:
        return n_samples
    return min(n_samples, validation.eval_iters * train.micro_batch_size)


def validate(
    fabric: Fabric, model: GPT, data: Samples, train: TrainArgs, validation: ValidationArgs, team: Team = ALONE
) -> float:
    """Returns the mean loss per target token of the validation set, or of its first `n_validated` samples.

    Args:
        team: the processes among which the micro-batches are dealt.
    """
    found = means(fabric, model, data, train=train, validation=validation, team=team)
    assert found is not None
    return found[0]


@torch.no_grad()
def means(
    fabric: Fabric,
    model: GPT,
    data: Samples,
    *,
    train: TrainArgs,
    validation: ValidationArgs,
    objective: Objective = NEXT_TOKEN,
    stopped: Callable[[], Any] = lambda: False,
    team: Team = ALONE,
) -> list[float] | None:
    """Returns loss and figures as means over the terms of the validation set, or of its first `n_validated` samples.

    Args:
        objective: what is measured.
        stopped: called after each micro-batch; where it returns something true, the result is None.
        team: the processes among which the micro-batches are dealt.
    """
    model.eval()
    n_samples = n_validated(len(data), train, validation)
    if objective.measure is not None:
        return objective.measure(model, data, n_samples, stopped)
    with fabric.autocast():
        packing = packing_of(model, train, fabric.device)
    parts = (range(start, min(start + AT_ONCE, n_samples)) for start in range(0, n_samples, AT_ONCE))
    total, n_terms = torch.zeros(1 + len(objective.figures), device=fabric.device, dtype=torch.float32), 0
    batches = (batch for part in parts for batch in micro_batches(data, part, packing))
    while round_ := list(islice(batches, team.size)):
        batch = round_[team.rank] if team.rank < len(round_) else Idle.make() if is_sharded(model) else None
        if batch is not None:
            with fabric.autocast():
                loss, figures = objective(model, batch.to(fabric.device))
            total += torch.cat([loss[None], figures])
            n_terms += batch.n_terms
        if stopped():
            return None
    *sums, n_terms = team.total(*total.tolist(), n_terms)
    return [x / max(1, n_terms) for x in sums]
