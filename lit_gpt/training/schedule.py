"""The learning rate as a function of the step."""

import math

from lit_gpt.args import TrainArgs


def warmup_of(args: TrainArgs, n_steps: int) -> int:
    """Warm-up steps of a run: as asked for, but at most a tenth of it, so that short runs train too."""
    return min(args.warmup_steps, n_steps // 10)


def learning_rate(step: int, n_steps: int, args: TrainArgs) -> float:
    """The rate of optimizer step `step`, 1 .. n_steps: a linear rise, then `lr_schedule` from the peak to 0."""
    warmup = warmup_of(args, n_steps)
    if step <= warmup:
        return args.learning_rate * step / warmup
    progress = (step - warmup - 1) / max(1, n_steps - warmup)  # 0 at the peak; the step after the last one would be 1
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return args.learning_rate * shape[args.lr_schedule]
