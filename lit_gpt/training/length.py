"""How long a run is, in samples and optimizer steps, counted from where it is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lit_gpt.args import TrainArgs

_FEW_STEPS = 30
"""Optimizer steps below which a run hardly learns: its first ones still look for the scale of the gradient."""
_SMALL_BATCH = 8
"""Samples a step that give a small data set steps enough."""
SMALL_DATA = "finetune/recipes/small_data.yaml"


@dataclass(frozen=True)
class Length:
    """How long a run is, with what it has done already."""

    step: int
    """Optimizer steps that are done; what follows is counted from here."""
    seen: int
    """Samples of these steps: a last step of an earlier, shorter run may have had fewer than the others."""
    batch_size: int
    """Samples of each step to come."""
    n_samples: int
    """Samples that the whole run sees."""
    n_steps: int
    """Optimizer steps of the whole run."""
    ended_by: str
    """Name of the flag whose limit that is."""

    def seen_after(self, step: int) -> int:
        """Returns the samples seen after a step that is not before `self.step`."""
        return min(self.n_samples, self.seen + (step - self.step) * self.batch_size)

    def cut(self, n_steps: int, ended_by: str) -> "Length":
        """Returns the same run, ended by another limit after `n_steps`."""
        return replace(self, n_steps=n_steps, n_samples=self.seen_after(n_steps), ended_by=ended_by)


def length_of(train: TrainArgs, n_rows: int, step: int = 0, seen: int = 0) -> Length:
    """Returns how long a run with these limits is; it has no steps left where a limit has been passed.

    Args:
        n_rows: samples in the training set.
        step, seen: optimizer steps and samples that are done.
    """
    limits = train.limits(n_rows, step, seen)
    ended_by = min(limits, key=limits.__getitem__)
    n_samples = max(seen, limits[ended_by])
    n_steps = step + -(-(n_samples - seen) // train.batch_size)
    return Length(
        step=step, seen=seen, batch_size=train.batch_size, n_samples=n_samples, n_steps=n_steps, ended_by=ended_by
    )


def outlook(step: int, length: Length) -> Iterator[str]:
    """Yields the lines that say, before its next step, what a run is going to do.

    Args:
        step: optimizer steps that are done.
    """
    n_steps = length.n_steps
    if step:
        yield (
            f"Going on after step {step:,}: {n_steps - step:,} of {n_steps:,} optimizer steps are left, then "
            f"--{length.ended_by} ends the run; the learning rate goes on as in a run of {n_steps:,}"
        )
    else:
        steps = f"{n_steps:,} optimizer step{'s' * (n_steps != 1)}"
        yield f"{steps} of {length.batch_size} samples, then --{length.ended_by} ends the run"
    yield from _too_few(length)


def _too_few(length: Length) -> Iterator[str]:
    """Yields a line with a way out if a run has too few steps to learn much."""
    if length.n_steps >= _FEW_STEPS:
        return
    way = f"raise --{length.ended_by}, which ends the run"
    if length.batch_size > _SMALL_BATCH:
        way = f"try --batch_size {_SMALL_BATCH}, or for LoRA --config {SMALL_DATA}"
    yield f"{length.n_steps:,} optimizer step{'s' * (length.n_steps != 1)}: too few to learn much; {way}"
