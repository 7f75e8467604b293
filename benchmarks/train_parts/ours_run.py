"""Our run: the library's own training loop over the shared rows."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_parts.job import Job
from train_parts.record import Record

from lit_gpt.args import FullArgs, LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.data.batches import Batch
from lit_gpt.data.store import Samples
from lit_gpt.fabric import make_fabric
from lit_gpt.lightning import Fabric
from lit_gpt.methods import full, lora
from lit_gpt.model import GPT
from lit_gpt.training.length import Length
from lit_gpt.training.loop import fit
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.monitor import Monitor
from lit_gpt.training.run.session import Session
from lit_gpt.training.validation import validate


class Recorder(Monitor):
    """Stands where the loop's monitor stands."""

    def __init__(self) -> None:
        self.record = Record()

    def iterated(self, step: int, batch: Batch, loss: torch.Tensor, learning_rate: float, is_step: bool) -> None:
        self.record.add(batch.n_tokens, batch.n_samples, batch.n_targets, loss.item(), batch.n_computed)

    def stepped(self, step: int, learning_rate: float) -> None:
        pass

    def validated(self, step: int, loss: float, seconds: float, figures: Any = None) -> None:
        pass

    def saved(self, seconds: float) -> None:
        pass

    paused = saved

    def report(self) -> None:
        pass

    begin = report

    def expect(self, step: int, length: Length) -> None:
        pass

    def mark(self) -> dict[str, Any]:
        return {}

    state = mark

    def restore(self, mark: dict[str, Any]) -> None:
        raise AssertionError("a step was taken back, and what was measured is void")

    def say(self, line: str) -> None:
        print(line)


def run_unshared(job: Job) -> None:
    run(job, share_prefixes=False)


def run(job: Job, share_prefixes: bool = True) -> None:
    fitted(*adapted(job), job, share_prefixes).tell()


def adapted(job: Job) -> tuple[Fabric, GPT]:
    """The model as it is before the first step."""
    fabric = make_fabric(job.precision, seed=job.seed)
    model, _ = load_base(fabric, job.material.ours)
    full.inject(model, FullArgs()) if job.targets == "full" else lora.inject(model, lora_args(job))
    return fabric, model


def fitted(fabric: Fabric, model: GPT, job: Job, share_prefixes: bool) -> Record:
    """Train the model over the rows; what that took."""
    rows = job.material.rows[: job.n_rows] * job.repeats
    train = TrainArgs(
        learning_rate=job.learning_rate,
        lr_schedule="constant",
        batch_size=job.batch_size,
        micro_batch_size=job.micro_batch_size,
        warmup_steps=0,
        epochs=1,
        share_prefixes=share_prefixes,
    )
    recorder = Recorder()
    shortest = stacked([min(rows, key=lambda row: len(row[0]))])  # the loop validates; that is not what is timed
    with tempfile.TemporaryDirectory() as folder:
        saves = CheckpointStore(Path(folder), "full" if job.targets == "full" else "lora")
        fit(
            fabric,
            model,
            train_data=stacked(rows),
            val_data=shortest,
            session=Session(saves, recorder),
            train=train,
            validation=ValidationArgs(),
            seed=job.seed,
        )
    return recorder.record


def lora_args(job: Job) -> LoRAArgs:
    everywhere = job.targets == "all"
    return LoRAArgs(
        lora_r=job.r,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        lora_key=everywhere,
        lora_projection=everywhere,
        lora_mlp=everywhere,
    )


def stacked(rows: list[tuple[np.ndarray, np.ndarray]]) -> Samples:
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)], dtype=np.int64)
    ids, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    return Samples(ids, labels, offsets)


def base_losses(job: Job) -> dict[str, float]:
    """The untouched model's mean loss over the rows' targets, packed and each row by itself."""
    fabric = make_fabric(job.precision, seed=job.seed)
    model, _ = load_base(fabric, job.material.ours)
    rows = stacked(job.material.rows)
    losses = {}
    for name, tokens in {"packed": None, "alone": 1}.items():
        train = TrainArgs(micro_batch_tokens=tokens)
        losses[name] = validate(fabric, model, rows, train=train, validation=ValidationArgs())
    return losses
