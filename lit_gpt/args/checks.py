"""How data is checked, augmented and mixed."""

from dataclasses import dataclass
from pathlib import Path

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class CheckArgs:
    """What the check of a prepared data set looks at."""

    language: str | None = None
    """Warn of rows that are in another language than this one, such as en (ISO 639-1); needs pip install py3langid."""
    epochs: float = 1
    """Passes over the training set, to say how many tokens a run sees."""
    n_samples: int = 3
    """Samples to print with their targets marked."""
    near_duplicate: float = 0.8
    """Rows that share this part of their runs of 5 characters count as nearly the same."""

    def __post_init__(self) -> None:
        require("n_samples", self.n_samples, at_least=0)
        if self.epochs <= 0:
            raise UserError(f"--epochs {self.epochs} trains nothing; it must be more than 0")
        if not 0 < self.near_duplicate <= 1:
            raise UserError(f"--near_duplicate {self.near_duplicate} must be more than 0 and at most 1")


@dataclass(frozen=True)
class ContaminationArgs:
    """Which evaluation sets the training text must not contain, and what happens where it does."""

    task_data: dict[str, Path] | Path | None = None
    """The evaluation sets: a JSON, JSONL or CSV file, a folder with a file for each task, or task -> file or folder, as
    for eval/lm_eval_harness.py."""
    n_words: int = 13
    """So many words in a row that an evaluation text and a training text have in common are an overlap. A shorter text
    has to be there as a whole."""
    n_examples: int = 3
    """Overlaps of each task to print."""
    drop: bool = False
    """Write the data set without the rows that overlap to --destination_path."""
    destination_path: Path | None = None
    """Folder for the cleaned data set."""

    def __post_init__(self) -> None:
        if not self.task_data:
            raise UserError("--task_data is missing: the file or folder of the evaluation sets")
        require("n_words", self.n_words, at_least=5)
        require("n_examples", self.n_examples, at_least=0)
        if self.drop != (self.destination_path is not None):
            raise UserError("--drop true and --destination_path go together: what is cleaned is written there")
