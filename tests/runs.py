"""Runs of the loop in this process, and records of runs."""

from dataclasses import asdict

import torch
from tiny import TINY, make_samples

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.checkpoints.runs import Run
from lit_gpt.lightning import Fabric
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.training.loop import fit
from lit_gpt.training.loss import NEXT_TOKEN
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.monitor import Monitor
from lit_gpt.training.run.session import Session
from lit_gpt.training.validation import validate


def train_briefly(model, out_dir, **settings):
    """Trains a model in a short run of the loop, and returns its validation losses before and after."""
    args = TrainArgs(batch_size=8, micro_batch_tokens=64, learning_rate=1e-2, warmup_steps=1, epochs=2, **settings)
    data, fabric = make_samples(20), Fabric(accelerator="cpu", devices=1)
    out_dir.mkdir(exist_ok=True)
    before = validate(fabric, model, data, args, ValidationArgs())
    monitor = Monitor(out_dir, args.n_samples(len(data)), args.log_interval)
    session = Session(CheckpointStore(out_dir, "full"), monitor)
    fit(fabric, model, data, make_samples(6, 1), session, args, ValidationArgs(), 7)
    monitor.close()
    return before, validate(fabric, model, data, args, ValidationArgs())


def model_with_lora(dropout=0.1):
    """Returns a tiny model with LoRA in it, and leaves the random numbers at the same place each time."""
    torch.manual_seed(0)
    model = GPT(TINY)
    lora.inject(model, LoRAArgs(lora_dropout=dropout))
    torch.manual_seed(1)
    return model


def trained(
    out,
    model=None,
    data=None,
    resumed=None,
    validation=None,
    score=None,
    val=None,
    objective=NEXT_TOKEN,
    **train,
):
    """Trains a model with LoRA, in a run that can be resumed; returns its trained parameters by name, and progress."""
    out.mkdir(exist_ok=True)
    model, data = model or model_with_lora(), data or make_samples(24)
    args = TrainArgs(**{"learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "micro_batch_tokens": 100} | train)
    monitor = Monitor(
        out, args.n_samples(len(data)), args.log_interval, goes_on=resumed is not None, figures=objective.figures
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    checkpoint_store = CheckpointStore(out, "lora", args.keep_last)
    session = Session(checkpoint_store, monitor, Budget(args.max_seconds), resumed, score)
    val, validation = val or make_samples(6, 1), validation or ValidationArgs()
    progress = fit(fabric, model, data, val, session, args, validation, 7, objective)
    monitor.close()
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, progress


ARGS = {"lora": LoRAArgs(), "adapter": AdapterArgs(), "adapter_v2": AdapterArgs(), "full": FullArgs()}
"""Method -> its arguments in `run_of`."""


def run_of(method, **training):
    """Returns the record of a run, which says all that those of this version do."""
    flags = asdict(TrainArgs()) | asdict(ValidationArgs()) | {"seed": 1, "precision": "32-true"} | training
    return Run(method, asdict(ARGS[method]), "plain", "base", "digest", {"digest": "a"}, flags, {})
