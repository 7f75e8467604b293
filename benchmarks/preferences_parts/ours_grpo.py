"""Our run of GRPO: the library's own loop, with answers drawn by its engine, all of one length."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from preferences_parts.ours import StepRecorder
from preferences_parts.pairs import ALPHA, GROUP, NEW_TOKENS, PROMPTS, RANK, RATE, SEED, Pairs, score

from lit_gpt.args import LoRAArgs, TrainArgs, ValidationArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.checkpoints.base import load_base
from lit_gpt.data.store import IGNORE, Samples, stack
from lit_gpt.fabric import make_fabric
from lit_gpt.methods import lora
from lit_gpt.model import GPT
from lit_gpt.rollouts.drawing import Drawing
from lit_gpt.rollouts.loader import RolloutLoader
from lit_gpt.rollouts.objective import GrpoObjective
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.training.loop import fit
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.session import Session


class WholeAnswers(Drawing):
    """Draws answers of full length, which nothing ends, and grades them all the same."""

    def draw(
        self, model: GPT, data: Samples, rows: Sequence[int], seeds: Sequence[int] | None
    ) -> tuple[list[list[list[int]]], np.ndarray]:
        found, _ = super().draw(model, data, rows, seeds)
        scores = [[score(self.tokenizer.decode(answer)) for answer in group] for group in found]
        return found, np.array(scores, dtype=np.float32)

    def measured(self, *args: object) -> tuple[float, float]:
        """Nothing: a validation is not what is timed."""
        return 0.0, 0.0


def run(material: Pairs) -> None:
    """Train over the prompts once."""
    fabric, recorder = make_fabric("32-true", seed=SEED), StepRecorder()
    model, _ = load_base(fabric, material.model.ours)
    lora.inject(model, LoRAArgs(lora_r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, lora_key=True, lora_projection=True))
    data = stack([([*prompt, good[0]], [IGNORE] * len(prompt) + [good[0]]) for prompt, good, _ in material.tokens()])
    args = GrpoArgs(group_size=GROUP, max_new_tokens=NEW_TOKENS)
    tokenizer = Tokenizer(material.model.ours)
    drawing = WholeAnswers(tokenizer, lambda *texts: 0.0, args, end_ids=[], autocast=fabric.autocast)
    train = TrainArgs(learning_rate=RATE, lr_schedule="constant", batch_size=PROMPTS, warmup_steps=0, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            fabric,
            model,
            train_data=data,
            val_data=data,
            session=Session(CheckpointStore(Path(folder), "lora"), recorder),
            train=train,
            validation=ValidationArgs(),
            seed=SEED,
            objective=GrpoObjective(drawing),
            make_loader=partial(RolloutLoader, drawing=drawing, folder=Path(folder)),
        )
    recorder.tally.tell()
