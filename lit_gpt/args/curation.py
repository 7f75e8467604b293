"""Arguments of checking, augmenting and mixing data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.args.require import require
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class CheckArgs:
    """Arguments of the check of a prepared data set."""

    language: str | None = None
    """Warn of rows that are in another language than this one, such as en (ISO 639-1); needs pip install py3langid."""
    epochs: float = 1
    """Passes over the training set, to say how many tokens a run sees."""
    n_samples: int = 3
    """Samples to print with their targets marked."""
    near_duplicate: float = 0.8
    """Rows that share this part of their character 5-grams count as near-duplicates."""

    def __post_init__(self) -> None:
        require("n_samples", self.n_samples, at_least=0)
        if self.epochs <= 0:
            raise UserError(f"--epochs {self.epochs} trains nothing; it must be more than 0")
        if not 0 < self.near_duplicate <= 1:
            raise UserError(f"--near_duplicate {self.near_duplicate} must be more than 0 and at most 1")


@dataclass(frozen=True)
class ContaminationArgs:
    """Arguments of the search for evaluation questions in training text."""

    task_data: dict[str, Path] | Path | None = None
    """The evaluation sets: a JSON, JSONL or CSV file, a folder with a file for each task, or task -> file or folder, as
    for eval/lm_eval_harness.py."""
    n_words: int = 13
    """Length of an overlap: N words in a row that an evaluation text and a training text share. A shorter evaluation
    text must occur as a whole."""
    n_examples: int = 3
    """Overlaps of each task to print."""
    drop: bool = False
    """Write the data set without the overlapping rows to --destination_path."""
    destination_path: Path | None = None
    """Folder for the cleaned data set."""
    overwrite: bool = False
    """Replace the data set that destination_path holds."""

    def __post_init__(self) -> None:
        if not self.task_data:
            raise UserError("--task_data is missing: the file or folder of the evaluation sets")
        require("n_words", self.n_words, at_least=5)
        require("n_examples", self.n_examples, at_least=0)
        if self.drop != (self.destination_path is not None):
            raise UserError("--drop true and --destination_path go together: what is cleaned is written there")


_Perturbation = Literal["lowercase", "typos", "contractions", "expansions", "misspellings", "spaces", "mild_mix"]


@dataclass(frozen=True)
class AugmentArgs:
    """Arguments of augmentation of the training rows of raw sources; validation rows stay as they are."""

    shuffle_options: float = 0
    """Share of the multiple-choice rows whose options A, B, C ... are shuffled; the answer's letter follows."""
    perturb: float = 0
    """Share of the rows whose prompts are perturbed, as careless people write."""
    perturbations: tuple[_Perturbation, ...] = ("mild_mix",)
    """One of these is drawn for each such row; mild_mix is lowercase, contractions, misspellings and spaces at once."""
    augmented: Literal["add", "replace"] = "add"
    """Whether augmented rows are added to the originals or replace them."""

    def __post_init__(self) -> None:
        for name in ("shuffle_options", "perturb"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)} must be between 0 and 1")
        if not self.perturbations:
            raise UserError('--perturbations names none; e.g. --perturbations "[mild_mix]"')

    @property
    def any(self) -> bool:
        return self.shuffle_options > 0 or self.perturb > 0


@dataclass(frozen=True)
class MixArgs:
    """Arguments of a mixture: how much of each source it has."""

    sources: dict[str, Path] | None = None
    """name -> prepared folder, or file of rows (JSON, JSONL, CSV)."""
    weights: dict[str, float] | None = None
    """name -> share of the mixture; those of all sources are divided by their sum."""
    sizes: dict[str, int] | None = None
    """name -> training rows; more than the source has repeats rows. A source that is not named is taken whole."""
    caps: dict[str, int] | None = None
    """name -> maximum of training rows."""
    size: int | None = None
    """Training rows of the mixture, with --weights; if not given, as many as need no repetition."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError('--sources is missing; e.g. --sources "{alpaca: data/alpaca, mine: my.jsonl}"')
        for name in ("weights", "sizes", "caps"):
            for source, value in (getattr(self, name) or {}).items():
                if source not in self.sources:
                    raise UserError(f"--{name} names {source!r}; --sources are {', '.join(self.sources)}")
                if value <= 0:
                    raise UserError(f"--{name}: {source} {value} must be more than 0")
        if self.weights and self.sizes:
            raise UserError("--weights and --sizes contradict each other; pass one of them")
        if self.weights and self.weights.keys() != self.sources.keys():
            missing = ", ".join(self.sources.keys() - self.weights.keys())
            raise UserError(f"--weights has none for {missing}; name every source")
        if self.size is not None:
            require("size", self.size, at_least=1)
            if not self.weights:
                raise UserError("--size goes with --weights; --sizes says how many rows of each source")
