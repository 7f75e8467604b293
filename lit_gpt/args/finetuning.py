"""What a finetune script was told, to be run or planned."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.args import PlanArgs, RunArgs, TrainArgs, ValidationArgs


@dataclass(frozen=True)
class FinetuneArgs:
    """A run that is asked for."""

    method: str
    """Key of METHODS."""
    method_args: Any
    """What its `inject` takes."""
    checkpoint_dir: Path
    """Of the model to finetune."""
    data_dir: Path
    """Of the prepared data."""
    out_dir: Path
    """Where what it takes to use the result is left."""
    train: TrainArgs
    validation: ValidationArgs
    run: RunArgs = field(default_factory=RunArgs)
    plan: PlanArgs = field(default_factory=PlanArgs)
    """Whether to say what the run will take in place of starting it."""
    precision: str | None = None
    """As asked for; None lets the device choose, also one that is planned for."""
    quantize: str | None = None
    """How the frozen weights are kept, key of QUANTIZATIONS; None is the precision."""
    merge: bool = False
    """Write a checkpoint of the merged weights in the end, within the same time."""
