"""The training loop. It knows nothing of finetuning methods: it trains what requires a gradient and saves that."""

from collections.abc import Callable
from dataclasses import replace

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.data.store import Samples
from lit_gpt.lightning import Fabric
from lit_gpt.model import GPT
from lit_gpt.resources import keep_freed_memory
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.loss import NEXT_TOKEN, Objective
from lit_gpt.training.offload import make_gradients
from lit_gpt.training.optimizer import prepare_optimizer, set_learning_rate
from lit_gpt.training.run.checkpointer import Checkpointer
from lit_gpt.training.run.progress import Progress
from lit_gpt.training.run.session import Session
from lit_gpt.training.run.stopping import stop_signals
from lit_gpt.training.step import attempts, forward_backward, try_largest_batch
from lit_gpt.training.validation import validated


def fit(
    fabric: Fabric,
    model: GPT,
    train_data: Samples,
    val_data: Samples,
    session: Session,
    train: TrainArgs,
    validation: ValidationArgs,
    seed: int,
    objective: Objective = NEXT_TOKEN,
    make_loader: Callable[..., BatchLoader] = BatchLoader,
) -> Progress:
    """Trains the parameters of `model` that require a gradient; saves checkpoints.

    A checkpoint is saved before the first step, at every interval, when it is the best so far, and at the end. The run
    ends after the last step, when the time is up, when validation brings nothing better for long, or on a signal.
    Validations and saves are due at fixed steps, so that without a time limit a resumed run does what the
    uninterrupted one would have done.

    Args:
        seed: decides the order of the samples.
        objective: what is minimized.
        make_loader: makes the batch loader.

    Raises:
        UserError: the gradients of many steps in a row are not finite.
        DiskError: the disk is full at the start or at the end.
        RuntimeError: out of memory, with the smallest micro-batches and all blocks recomputed.
    """
    if fabric.device.type == "cpu":
        keep_freed_memory()
    optimizer = prepare_optimizer(fabric, model, train)
    gradients = make_gradients(fabric, model, optimizer, train=train, team=session.team)
    monitor, budget, team = session.monitor, session.budget, session.team
    loader = make_loader(
        model, train_data, train=train, device=fabric.device, seed=seed, autocast=fabric.autocast, team=team
    )
    checkpointer = Checkpointer(
        fabric, model, optimizer=optimizer, loader=loader, session=session, save_interval=train.save_interval
    )
    progress = checkpointer.begin()
    try_largest_batch(fabric, model, loader, gradients=gradients, budget=budget, objective=objective)
    checkpointer.restore()

    with stop_signals(team) as stop, checkpointer.saving_what_fails():
        while True:
            stop.agree()
            step = progress.step
            ends = step >= loader.n_steps or not budget.has_time_for_a_step()
            due = (ends or step % validation.eval_interval == 0) and (step == 0 or budget.has_time_to_validate())
            if due and progress.validated_step != step and not stop.signal:
                progress = validated(
                    fabric,
                    model,
                    val_data,
                    progress,
                    session=session,
                    train=train,
                    validation=validation,
                    objective=objective,
                    stop=stop,
                )
            ends = ends or objective.ends(progress.first_figures, progress.figures) is not None
            ends = ends or progress.n_without_gain >= (validation.early_stopping_patience or loader.n_steps + 1)
            ends = ends or not budget.has_time_for_a_step()  # the validation took some
            progress = checkpointer.keep(progress, ends, stops=bool(stop.signal))
            if ends or stop.signal:
                gradients.settle(monitor.say)
                return replace(progress, stopped_by=None if ends else stop.signal)

            gradients.require_finite(loader.rows)
            model.train()
            budget.begin_step(fabric.device)
            length = budget.cut(loader.length, step)
            monitor.expect(step, length)
            rate = set_learning_rate(optimizer, step + 1, length.n_steps, train)
            for attempt in attempts(fabric, loader, gradients, monitor):  # another one only if the memory runs out
                with attempt:
                    batches = loader.batches(step + 1)
                    n_terms = loader.n_terms(batches)
                    for batch in batches:  # gradient accumulation
                        loss = forward_backward(
                            fabric, model, batch, n_terms, hidden_of=loader.hidden_of, objective=objective
                        )
                        is_last = batch is batches[-1]
                        monitor.iterated(step + 1, batch, loss, rate, is_step=is_last)
                        if team.is_alone and not is_last and (stop.signal or budget.is_over):
                            attempt.abandon()
            if attempt.complete:
                monitor.stepped(step + 1, rate)
                gradients.step(step + 1, monitor.say)
                progress = replace(progress, step=step + 1, samples=loader.length.seen_after(step + 1))
