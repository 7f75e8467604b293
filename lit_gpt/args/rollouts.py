"""Arguments of answers that a model samples and a checker grades."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_gpt.args.require import require
from lit_gpt.args.sampling import require_ranges
from lit_gpt.errors import UserError

_CheckerName = Literal["number", "choice", "exact", "regex", "json", "python"]


@dataclass(frozen=True)
class CheckerArgs:
    """Arguments of the checker of answers."""

    checker: _CheckerName = "exact"
    """When an answer is right: its last number is the row's (number), its letter is (choice), all of its text is but
    for spaces around it (exact), the pattern is found in it (regex), it is the same JSON (json), a program says so."""
    pattern: str | None = None
    """Regular expression of --checker regex; the row's own answer is the pattern if not given."""
    checker_file: Path | None = None
    """Your own checker: a Python file with a function score(prompt, answer, expected), which returns a number from 0 to
    1, or true or false. It runs in a process of its own, within limits of time and memory."""
    checker_seconds: float = 10.0
    """Seconds that your checker may take for an answer; a slower one scores 0."""

    def __post_init__(self) -> None:
        if (self.checker == "python") != (self.checker_file is not None):
            raise UserError("--checker python and --checker_file go together")
        if self.pattern is not None and self.checker != "regex":
            raise UserError("--pattern goes with --checker regex")
        require("checker_seconds", self.checker_seconds, above=0)


@dataclass(frozen=True)
class SampleArgs:
    """Arguments of sampled answers."""

    k: int = 8
    """Answers to each prompt."""
    max_new_tokens: int = 256
    """Most tokens of an answer; one that is longer is not right."""
    temperature: float = 1.0
    """Temperature of the answers."""
    top_p: float = 1.0
    """Draw from the most likely tokens whose probabilities together reach this."""
    max_rows: int = 32
    """Answers that are written at once."""
    seed: int = 1234
    """Seed of all answers: the same one gives the same."""

    def __post_init__(self) -> None:
        for name in ("k", "max_new_tokens", "max_rows"):
            require(name, getattr(self, name), at_least=1)
        require_ranges(self)


@dataclass(frozen=True)
class KeepArgs:
    """Arguments of which prompts and answers are kept."""

    min_solved: float = 0.0
    """Least share of right answers with which a prompt is kept; one that none solves is left out in any case."""
    max_solved: float = 1.0
    """Largest share of right answers with which a prompt is kept, such as 0.99 to leave out what is always solved."""
    right_answers: int = 1
    """Most different right answers to a prompt that are written as rows to train on, the shortest first."""
    pairs: int = 1
    """Most pairs of a right and a wrong answer to a prompt."""

    def __post_init__(self) -> None:
        for name in ("min_solved", "max_solved"):
            require(name, getattr(self, name), at_least=0, at_most=1)
        require("right_answers", self.right_answers, at_least=0)
        require("pairs", self.pairs, at_least=0)
