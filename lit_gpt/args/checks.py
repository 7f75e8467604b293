"""How data is checked, augmented and mixed."""

from dataclasses import dataclass

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
