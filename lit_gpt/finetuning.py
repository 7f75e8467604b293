"""Runs a finetune script, from its arguments to the files it leaves in `out_dir`."""

from contextlib import nullcontext

from lit_gpt.args.finetuning import FinetuneArgs
from lit_gpt.data.store import Samples
from lit_gpt.files import only_writer
from lit_gpt.layers.compiled import compiling
from lit_gpt.lightning import Fabric
from lit_gpt.parallel.possible import require_divisible, require_possible
from lit_gpt.parallel.team import Team
from lit_gpt.parallel.watch import watched
from lit_gpt.planning.dry_run import dry_run
from lit_gpt.planning.outcome import gauges_of, plan_of_run, settle
from lit_gpt.rollouts.learning import learning_from_answers
from lit_gpt.training.batching import require_room_for_a_step
from lit_gpt.training.loader import BatchLoader
from lit_gpt.training.loop import fit
from lit_gpt.training.loss import NEXT_TOKEN
from lit_gpt.training.offload import require_offload
from lit_gpt.training.preferences.objective import objective_of
from lit_gpt.training.preferences.start import Referenced, as_sft_run
from lit_gpt.training.run.average import require_checkpoints
from lit_gpt.training.run.budget import LEDGER, Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.describe import description
from lit_gpt.training.run.disk import going_on, lenient_output
from lit_gpt.training.run.ending import Ending
from lit_gpt.training.run.folder import PLAN
from lit_gpt.training.run.loggers import make_logger, require_logger
from lit_gpt.training.run.monitor import Monitor
from lit_gpt.training.run.progress import position
from lit_gpt.training.run.session import Session
from lit_gpt.training.run.start import enter, find_checkpoint, load_data, load_model


def finetune(fabric: Fabric, args: FinetuneArgs) -> None:
    """Finetunes a model and writes the run to `args.out_dir`; with --dry_run, it only prints the plan.

    A mistake of the user is found before the model is loaded wherever possible. The training loop itself is
    `lit_gpt.training.loop.fit`.

    Raises:
        UserError: arguments, checkpoint, data or output folder do not fit together.
    """
    args = as_sft_run(args)
    with compiling(args.train.compile):
        if args.plan.dry_run:
            dry_run(fabric, args)
            return
        require_possible(args, fabric.world_size)
        team = Team.of_world()
        with watched(fabric, team):
            data = load_data(args)
            with lenient_output(), only_writer(args.out_dir) if team.leads else nullcontext():
                _finetune(fabric, args, data, team)


def _finetune(fabric: Fabric, args: FinetuneArgs, data: tuple[Samples, Samples, dict], team: Team) -> None:
    """Trains, and writes the run to `args.out_dir`.

    Args:
        data: training samples, validation samples, and their meta.json.
        team: the processes that train together.

    Raises:
        UserError: arguments, checkpoint, data or output folder do not fit together.
    """
    train, validation, out_dir = args.train, args.validation, args.out_dir
    train_data, val_data, meta = data

    # Open the output folder, and check the flags: all that can fail without the model.
    checkpoint_store = CheckpointStore(out_dir, args.method, train.keep_last)
    checkpoint = team.first(lambda: find_checkpoint(args, checkpoint_store))  # to resume from; None for a new run
    require_logger(train.logger)
    require_offload(train, str(fabric._precision.precision))
    # The plan measures the memory of a process that holds no model yet.
    planned = plan_of_run(fabric, args, (train_data, val_data))
    require_checkpoints(train, planned.work.n_steps)
    require_room_for_a_step(train_data.lengths, train, planned.work.n_samples)

    # Load the base model and inject the method; a resumed run gets its trained weights later, in `fit`. What a run on
    # preferences is held against is the model before that.
    if sharded := team.lead(planned.job.sharded):
        require_divisible(args)
    referenced = Referenced(fabric, args, (train_data, val_data), team)
    among = team if sharded else None
    model, base_digest = load_model(fabric, args, checkpoint, at_first=referenced.compute, among=among)
    train_data, val_data = referenced.data
    objective, make_loader = objective_of(args.preference) if args.preference else NEXT_TOKEN, BatchLoader
    if args.grpo is not None and args.check is not None:
        objective, make_loader = learning_from_answers(fabric, args, meta, grpo=args.grpo, check=args.check, team=team)
    score = None
    if validation.best_task is not None:
        from lit_gpt.evaluation.score import task_score  # imports lm-eval, which other runs do not need

        score = task_score(fabric, model, args.checkpoint_dir, validation=validation, prompt_style=meta["prompt_style"])
    print(*description(model, train_data, args, device=fabric.device, done=position(checkpoint)), sep="\n")
    # Claim the folder only now that data, flags and model have proved to work: --overwrite deletes the previous run.
    run = team.first(lambda: enter(fabric, args, data, base_digest=base_digest, checkpoint=checkpoint))

    # Set up what surrounds the loop: the results at the end, the time limit, and the metrics.
    ending = Ending(
        fabric, model, val_data=val_data, args=args, checkpoint_store=checkpoint_store, run=run, objective=objective
    )
    budget = Budget(
        max_seconds=train.max_seconds,
        finish=ending.rehearse if team.leads else None,  # rehearsed, to know how much time the end needs
        validates_again=train.average_last > 0,
        ledger=out_dir / LEDGER if team.leads else None,
        eval_interval=validation.eval_interval,
        save_interval=train.save_interval,
        team=team,
    )
    gauges = gauges_of(fabric, planned, model, budget, n_devices=team.size)
    monitor = Monitor(
        out_dir,
        planned.work.n_samples,
        train.log_interval,
        goes_on=checkpoint is not None,
        gauges=gauges,
        logger=make_logger(train.logger, out_dir, run.training) if team.leads else None,
        figures=objective.figures,
        team=team,
    )
    surroundings = {"score": score, "team": team, "later_bytes": ending.n_bytes}
    session = Session(checkpoint_store, monitor, budget, resumed=checkpoint, **surroundings)

    # Train.
    progress = fit(
        fabric,
        model,
        train_data=train_data,
        val_data=val_data,
        session=session,
        train=train,
        validation=validation,
        seed=args.run.seed,
        objective=objective,
        make_loader=make_loader,
    )
    monitor.close()
    if not team.leads:  # what is left to do is done by one
        return

    # An interrupted run ends here: its last checkpoint is all that --resume needs.
    if progress.stopped_by:
        print(f"Stopped by {progress.stopped_by} after step {progress.step:,}; --resume true goes on from there")
        return
    if not progress.step and train.max_seconds:
        print(f"No optimizer step was taken: --max_time {train.max_time} has no room for one; raise it")

    # Compare the plan with what the run took, then write curve, report, and merged or averaged weights.
    with going_on(str(out_dir / PLAN)):
        settle(planned, gauges, out_dir, whole=checkpoint is None and progress.step == planned.work.n_steps)
    ending.finish(progress)
    if train.max_seconds:
        print(f"Time used: {budget.used:.0f} of {train.max_seconds:.0f} s")
