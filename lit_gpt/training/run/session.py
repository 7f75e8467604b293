"""What surrounds the loop of a run: its store of checkpoints, monitor, time limit and score."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.training.run.budget import Budget
from lit_gpt.training.run.checkpoint_store import CheckpointStore
from lit_gpt.training.run.monitor import Monitor


@dataclass(frozen=True)
class Session:
    """The surroundings of a run's loop."""

    checkpoint_store: CheckpointStore
    monitor: Monitor
    budget: Budget = field(default_factory=Budget)
    resumed: Path | None = None
    """Checkpoint that the run resumes from; None for a new run."""
    score: Callable[[], float] | None = None
    """Returns the score by which a checkpoint is the best; None decides by the lowest validation loss."""
    team: Team = ALONE
    """The processes that train together."""
    later_bytes: int = 0
    """Bytes that are written after the training."""
