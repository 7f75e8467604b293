"""Our run: the library's own loop, with the reference computed before its first step."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from preferences_parts.pairs import ALPHA, BETA, RANK, RATE, SEED, STEP, Pairs
from preferences_parts.tally import Tally
from train_parts.ours_run import Recorder

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.data.answers import Answers, grouped
from lit_gpt.data.batches import Batch
from lit_gpt.data.store import IGNORE, stack
from lit_gpt.fabric import make_fabric
from lit_gpt.methods import lora
from lit_gpt.training.loop import fit
from lit_gpt.training.preferences.objective import objective_of
from lit_gpt.training.preferences.reference import ReferenceStore, known_references
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.session import Session


class StepRecorder(Recorder):
    """Stands where the loop's monitor stands, and adds up the micro-batches of each step."""

    def __init__(self) -> None:
        self.tally, self.n, self.loss = Tally(), 0, 0.0

    def iterated(self, step: int, batch: Batch, loss: torch.Tensor, learning_rate: float, is_step: bool) -> None:
        self.n, self.loss = self.n + batch.n_terms, self.loss + float(loss[0])
        if is_step:
            self.tally.add(self.n, self.loss)
            self.n, self.loss = 0, 0.0


def run(material: Pairs) -> None:
    """Train over the pairs once."""
    fabric, recorder = make_fabric("32-true", seed=SEED), StepRecorder()
    model, _ = load_base(fabric, material.model.ours)
    data, train = (
        answers_of(material),
        TrainArgs(learning_rate=RATE, lr_schedule="constant", batch_size=STEP, warmup_steps=0, epochs=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        began, store = time.perf_counter(), ReferenceStore(Path(folder), {})
        known = known_references(fabric, model, data, range(len(data)), store=store, split="train", train=train)
        recorder.tally.reference_seconds = time.perf_counter() - began
        lora.inject(
            model, LoRAArgs(lora_r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, lora_key=True, lora_projection=True)
        )
        data = replace(data, reference=known)
        first = replace(data, offsets=data.offsets[:2], firsts=data.firsts[:2])  # validation is not what is timed
        fit(
            fabric,
            model,
            train_data=data,
            val_data=first,
            session=Session(CheckpointStore(Path(folder), "lora"), recorder),
            train=train,
            validation=ValidationArgs(),
            seed=SEED,
            objective=objective_of(PreferenceArgs("dpo", beta=BETA)),
        )
    recorder.tally.tell()


def answers_of(material: Pairs) -> Answers:
    """The pairs as rows of answers."""
    samples = [
        (prompt + answer, [IGNORE] * len(prompt) + answer)
        for prompt, *answers in material.tokens()
        for answer in answers
    ]
    return grouped(stack(samples), np.arange(0, len(samples) + 1, 2))
