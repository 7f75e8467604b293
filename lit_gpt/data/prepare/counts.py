"""The account of rows that become samples."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Counts:
    """What became of the rows of a split."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    apart: int = 0
    """Kept rows whose ids are not those of tokenizing their text as a whole: two texts melt where they meet."""
    last_only: int = 0
    """Kept rows of whose answers some carry no loss, since the chat template shows them, or what is before them,
    otherwise than generation sees it; the last one always does."""
    answers: int = 0
    """Answers of the kept rows that are to be taught, by what the rows say."""
    taught: int = 0
    """Answers of the kept rows that carry loss."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Kept rows with a text that the chat template does not show, or not as a whole, by kind of the text."""

    def add(self, other: "Counts") -> None:
        """Take in what became of other rows."""
        for name in (f.name for f in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, mine + theirs)

    def record(self) -> dict[str, Any]:
        """As meta.json has it; the last keys only where they say that something is not taught."""
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "cut": dict(self.cut),
            "tokenized_apart": self.apart,
            "last_answer_only": self.last_only,
            **({"answers": self.answers, "answers_taught": self.taught} if self.taught < self.answers else {}),
            **({"not_shown": dict(self.left_out)} if self.left_out else {}),
        }

    def notes(self) -> list[str]:
        """What else is to be said of the kept rows than that they were kept."""
        found = []
        if self.apart:
            found.append(f"in {self.apart:,} rows the ids differ from those of tokenizing prompt and response as one")
        if self.last_only:
            found.append(
                f"in {self.last_only:,} rows not all answers carry loss: the chat template shows earlier ones, or what "
                f"is before them, otherwise than generation sees it"
            )
        if self.taught < self.answers:
            found.append(f"{self.taught:,} of {self.answers:,} answers carry loss")
        for kind, n in self.left_out.items():
            found.append(f"in {n:,} rows the chat template does not show all of the {kind}")
        return found
