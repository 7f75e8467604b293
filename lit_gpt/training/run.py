"""What surrounds the loop in every finetune script: the data, the run's folder, the figures before and after."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from lit_gpt.args import PlanArgs, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.checkpoint import (
    BEST,
    METHODS,
    Run,
    claim_out_dir,
    load_base,
    read_run,
    save_run,
    versions,
)
from lit_gpt.data import store
from lit_gpt.evaluation.score import task_score
from lit_gpt.files import load_state, temporary_beside
from lit_gpt.fused import set_compile
from lit_gpt.merging.write import write_merged
from lit_gpt.model import GPT
from lit_gpt.report.page import write_report
from lit_gpt.resources import peak_memory_gb
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.average import save_average
from lit_gpt.training.budget import Budget
from lit_gpt.training.feed import micro_batch_tokens
from lit_gpt.training.flops import estimated_flops, measured_flops
from lit_gpt.training.loggers import make_logger, require_logger
from lit_gpt.training.loop import fit, validate
from lit_gpt.training.monitor import Monitor, plot_losses
from lit_gpt.training.planning.dry_run import dry_run
from lit_gpt.training.planning.outcome import gauges_of, plan_of_run, settle
from lit_gpt.training.resume import checkpoint_to_resume, require_same
from lit_gpt.training.saves import Progress, Saves
from lit_gpt.training.schedule import warmup_of
from lit_gpt.training.session import Session

MERGED_FOLDER = "merged"
"""Folder of the merged checkpoint within that of the run."""


def finetune(
    fabric: Fabric,
    method: str,
    method_args: Any,
    checkpoint_dir: Path,
    data_dir: Path,
    out_dir: Path,
    train: TrainArgs,
    validation: ValidationArgs,
    args: RunArgs,
    plan: PlanArgs = PlanArgs(),
    *,
    precision: str | None = None,
    quantize: str | None = None,
    merge: bool = False,
) -> None:
    """Finetune the model of `checkpoint_dir` by `method` on `data_dir`, and leave in `out_dir` what it takes to use it.

    Args:
        method: key of METHODS.
        method_args: what its `inject` takes.
        plan: whether to say what the run will take in place of starting it.
        precision: as asked for; None lets a device that is planned for choose.
        quantize: how the frozen weights are kept, key of QUANTIZATIONS; None is the precision of `fabric`.
        merge: write the checkpoint of the merged weights to `out_dir / merged` in the end, within the same time.

    Raises:
        UserError: checkpoint, data and folder that do not go together; see what is called here.
    """
    if plan.dry_run:
        given = {"precision": precision, "prompt_style": args.prompt_style, "quantize": quantize, "seed": args.seed}
        return dry_run(fabric, method, method_args, checkpoint_dir, data_dir, train, validation, plan, **given)
    train_data, val_data, meta = store.load(data_dir)
    store.check_fit(meta, data_dir, Tokenizer(checkpoint_dir).fingerprint(), args.prompt_style)
    saves = Saves(out_dir, method, train.keep_last)
    place = checkpoint_to_resume(saves, args.resume) if args.resume else None
    if place is None and not args.overwrite:
        claim_out_dir(out_dir, overwrite=False)
    require_logger(train.logger)
    planned = plan_of_run(
        fabric, method, method_args, checkpoint_dir, (train_data, val_data), train, validation,
        quantize=quantize, seed=args.seed,
    )  # fmt: skip
    set_compile(train.compile)
    model, base_digest = load_base(fabric, checkpoint_dir, quantize)
    inject, _ = METHODS[method]
    inject(model, method_args)
    score = task_score(fabric, model, checkpoint_dir, validation, meta["prompt_style"])
    describe(fabric, model, train_data, meta, method, method_args, train)

    training = {**asdict(train), **asdict(validation), "seed": args.seed, "precision": str(fabric._precision.precision)}
    data = {"folder": str(data_dir), **meta, "digest": train_data.digest()}
    run = Run(
        method, asdict(method_args), meta["prompt_style"], str(checkpoint_dir), base_digest, data, training, versions(),
        quantize,
    )  # fmt: skip
    if place is not None:
        require_same(run, read_run(place), args.allow_changes)
    elif args.overwrite:  # now that the new run can start
        claim_out_dir(out_dir, overwrite=True)
    save_run(run, out_dir)  # before the first weights, so that those of an interrupted run can be used
    write = partial(write_merged, checkpoint_dir, run=run, overwrite=True)
    budget = Budget(train.max_seconds, partial(rehearse_merge, write, out_dir) if merge else None)
    gauges = gauges_of(fabric, planned, model, (lambda: budget.left) if train.max_seconds else None)
    shown = {"gauges": gauges, "logger": make_logger(train.logger, out_dir, training)}
    monitor = Monitor(out_dir, planned.work.n_samples, train.log_interval, goes_on=place is not None, **shown)
    session = Session(saves, monitor, budget, place, score)
    progress = fit(fabric, model, train_data, val_data, session, train, validation, args.seed)
    monitor.close()
    if progress.stopped_by:
        print(f"Stopped by {progress.stopped_by} after step {progress.step:,}; --resume true goes on from there")
        return
    if train.average_last:
        print_average(fabric, model, val_data, saves, train, validation)
    conclude(out_dir, saves, progress)
    settle(planned, gauges, out_dir, whole=place is None and progress.step == planned.work.n_steps)
    print(f"Saved a report to {write_report(out_dir)}")
    if merge:
        write(out_dir, out_dir=out_dir / MERGED_FOLDER)
        print(f"Saved the merged checkpoint to {out_dir / MERGED_FOLDER}")
    if train.max_seconds:
        print(f"Time used: {budget.used:.0f} of {train.max_seconds:.0f} s")


def conclude(out_dir: Path, saves: Saves, progress: Progress) -> None:
    """Draw the curve, and print what the training took and where its result is."""
    plot_losses(out_dir / "metrics.csv", out_dir / "loss.png")
    print(f"Training time: {progress.monitor['seconds']:.2f}s")
    print(f"Memory used: {peak_memory_gb():.02f} GB")
    print(f"Saved the trained weights to {saves.weights}, the loss curve to {out_dir / 'loss.png'}")
    if progress.best_step not in (None, progress.step):
        print(f"The best checkpoint is that of step {progress.best_step:,}; its weights: {out_dir / BEST}")


def print_average(
    fabric: Fabric, model: GPT, val_data: store.Samples, saves: Saves, train: TrainArgs, validation: ValidationArgs
) -> None:
    """Save the mean of the last checkpoints, and say what its validation loss is. The model has these weights then."""
    folder, steps = save_average(saves, train.average_last)
    model.load_state_dict(load_state(folder / saves.weights.name, "the finetune script"), strict=False)
    loss = validate(fabric, model, val_data, train, validation)
    print(f"Mean of the checkpoints of steps {', '.join(map(str, steps))}: val loss {loss:.4f}; its weights: {folder}")


def rehearse_merge(write: Callable[..., None], out_dir: Path, place: Path) -> None:
    """Merge the run in the folder `place`, and throw the result away."""
    aside = out_dir / f".{MERGED_FOLDER}.rehearsal"
    temporary_beside(aside)  # removes what a killed process left
    try:
        write(place, out_dir=aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def describe(
    fabric: Fabric,
    model: GPT,
    data: store.Samples,
    meta: dict[str, Any],
    method: str,
    method_args: Any,
    train: TrainArgs,
) -> None:
    """Print what is about to happen: parameters, operations, length of the run."""
    with torch.device("meta"):
        counted = GPT(copy.deepcopy(model.config))  # quantized weights would count as what they are packed in
        METHODS[method][0](counted, method_args)
    trained, frozen = (
        sum(p.numel() for p in counted.parameters() if p.requires_grad is wanted) for wanted in (True, False)
    )
    print(f"Number of trainable parameters: {trained:,}")
    print(f"Number of non trainable parameters: {frozen:,}")
    n_samples = train.n_samples(len(data))
    n_steps = -(-n_samples // train.batch_size)
    length = round(float(data.lengths.mean()))
    n_tokens = micro_batch_tokens(train, fabric.device)
    print(
        f"Training {n_samples:,} samples = {n_samples / len(data):.2f} epochs in {n_steps:,} steps "
        f"of {train.batch_size}; {warmup_of(train, n_steps)} steps of warm-up"
    )
    print(
        f"The longest training sample has {data.lengths.max()} tokens, the model has room for {model.config.block_size}"
    )
    n_samples = max(1, n_tokens // length)
    size = f"(one forward and backward pass of {n_samples} x {length} tokens, the mean length)"
    print(f"Estimated TFLOPs: {estimated_flops(counted, n_samples, length) / 1e12:.2f} {size}")
    print(f"Measured TFLOPs: {measured_flops(counted, n_samples, length) / 1e12:.2f} {size}")
