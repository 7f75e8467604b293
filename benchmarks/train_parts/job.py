"""What every peer is to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train_parts.material import Material


@dataclass(frozen=True)
class Job:
    """One epoch of LoRA, or of full finetuning."""

    folder: Path
    """Where the model and the rows are."""
    precision: Literal["32-true", "bf16-true"]
    targets: Literal["qv", "all", "full"]
    """Layers with LoRA: q and v, or all linear layers of the blocks; `full` trains every weight instead."""
    max_seq_length: int = 512
    """Tokens of a packed row, for those that pack."""
    n_rows: int | None = None
    """Of the rows, how many ours sees, from the first; None is all."""
    repeats: int = 1
    """How often it sees them."""
    batch_size: int = 32
    """Samples an optimizer step, where a peer counts samples."""
    micro_batch_size: int = 4
    """Samples a forward pass, where a peer pads."""
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    seed: int = 1337

    @property
    def learning_rate(self) -> float:
        return 3e-5 if self.targets == "full" else 3e-4

    @property
    def material(self) -> Material:
        return Material(self.folder)
