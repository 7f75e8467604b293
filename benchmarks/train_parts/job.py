"""What every peer is to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train_parts.material import Material


@dataclass(frozen=True)
class Job:
    """One epoch of LoRA."""

    folder: Path
    """Where the model and the rows are."""
    precision: Literal["32-true", "bf16-true"]
    targets: Literal["qv", "all"]
    """Layers with LoRA: q and v, or all linear layers of the blocks."""
    max_seq_length: int = 512
    """Tokens of a packed row, for those that pack."""
    repeats: int = 1
    """How often ours sees the rows."""
    batch_size: int = 32
    """Samples an optimizer step, where a peer counts samples."""
    micro_batch_size: int = 4
    """Samples a forward pass, where a peer pads."""
    learning_rate: float = 3e-4
    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    seed: int = 1337

    @property
    def material(self) -> Material:
        return Material(self.folder)
