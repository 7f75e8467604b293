"""What a run has around its loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.monitor import Monitor


@dataclass(frozen=True)
class Session:
    """Where a run is kept and shown, how long it has, and what makes a checkpoint the best."""

    checkpoint_store: CheckpointStore
    monitor: Monitor
    budget: Budget = field(default_factory=Budget)
    resumed: Path | None = None
    """The checkpoint to go on from."""
    score: Callable[[], float] | None = None
    """What the best checkpoint has most of; None is the one with the lowest validation loss."""
    later_bytes: int = 0
    """Of what is written after the training."""
