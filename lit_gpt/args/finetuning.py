"""The arguments of a finetune script in one object, to be run or planned."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gpt.args import AdapterArgs, FullArgs, LoRAArgs, PlanArgs, RunArgs, TrainArgs, ValidationArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.args.preferences import PreferenceArgs
from lit_gpt.args.rollouts import CheckerArgs
from lit_gpt.errors import UserError

MERGEABLE = ("lora", "full")
"""Methods whose runs can be written as a checkpoint."""


@dataclass(frozen=True)
class FinetuneArgs:
    """All arguments of a finetune script."""

    method: str
    """Key of METHODS."""
    method_args: Any
    """Arguments of the method, as its `inject` takes them."""
    checkpoint_dir: Path
    """Folder of the base model."""
    data_dir: Path
    """Folder of the prepared data."""
    out_dir: Path
    """Folder of the run."""
    train: TrainArgs
    validation: ValidationArgs
    run: RunArgs = field(default_factory=RunArgs)
    plan: PlanArgs = field(default_factory=PlanArgs)
    """Whether to plan the run instead of starting it."""
    cluster: ClusterArgs = field(default_factory=ClusterArgs)
    """How many devices train together."""
    precision: str | None = None
    """Fabric's name of the precision; None lets the device decide, also one that is planned for."""
    quantize: str | None = None
    """Key of QUANTIZATIONS, for the frozen weights; None does not quantize them."""
    preference: PreferenceArgs | None = None
    """How to learn from preferences; None learns to write the answers of the data."""
    grpo: GrpoArgs | None = None
    """How to learn from graded answers of the model's own; None learns from those of the data."""
    check: CheckerArgs | None = None
    """Who grades them."""
    sft_run: Path | None = None
    """Run to go on from, with its method and weights; None begins with the base model. What the training begins with is
    what preferences are held against."""
    merge: bool = False
    """Whether to write the merged weights at the end, within the same time limit."""

    def __post_init__(self) -> None:
        if self.merge and self.method not in MERGEABLE:
            raise UserError(f"--merge true: no merged weights can compute the layers of {self.method}; leave it out")


def args_of(method: str, lora: LoRAArgs, adapter: AdapterArgs) -> LoRAArgs | AdapterArgs | FullArgs:
    """Returns the arguments of a method, where a script takes those of all."""
    return {"lora": lora, "full": FullArgs()}.get(method, adapter)
