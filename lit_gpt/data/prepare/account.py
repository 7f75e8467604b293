"""What became of rows, from the file to the arrays: counted while they are read, and said in lines."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.split import prompt_of

_MOST_KEYS = 1000
"""Different keys that are counted one by one: in some files keys are data."""
_MOST_LINES = 12


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


@dataclass
class Scan:
    """What was found in files that were read to their end."""

    n_rows: int = 0
    n_chat: int = 0
    """Rows that are conversations."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Entries that gave no row, by reason."""
    unused: Counter[str] = field(default_factory=Counter)
    """Rows whose entry has a key that is not read, by key."""
    prompts: list[str] = field(default_factory=list)
    """Of each row, if they were wanted."""
    systems: list[str] = field(default_factory=list)
    """The system text of each row, likewise; one that comes again takes no more memory."""
    known: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row, with_prompt: bool) -> None:
        """Count a row."""
        self.n_rows += 1
        self.n_chat += row.is_chat
        for key in row.unused:
            self.unused[key if key in self.unused or len(self.unused) < _MOST_KEYS else "and others"] += 1
        if with_prompt:
            self.prompts.append(prompt_of(row))
            self.systems.append(self.known.setdefault(row.system, row.system))


@dataclass
class Part:
    """A split as it was written."""

    counts: Counts
    lengths: np.ndarray
    n_targets: int


def print_unused(unused: Mapping[str, int]) -> None:
    """Say which keys nobody reads: a context or a weight under another name would go unnoticed."""
    for key, n in list(unused.items())[:_MOST_LINES]:
        print(f"the key {key!r} of {n:,} row{'s' * (n != 1)} is not used")
    if len(unused) > _MOST_LINES:
        print(f"nor are {len(unused) - _MOST_LINES:,} other keys; meta.json names them")


def summary(part: Part) -> str:
    """One line: how many samples and tokens, how long, and what was left out, cut, or tokenized apart."""
    counts, lengths = part.counts, part.lengths
    notes = [f"dropped: {message(counts.dropped)}"] if counts.dropped else []
    notes += [f"cut: {message(counts.cut)}"] if counts.cut else []
    notes = notes or ["none dropped or cut"]
    notes += counts.notes()
    if not len(lengths):
        return f"no samples; {'; '.join(notes)}"
    return (
        f"{len(lengths):,} samples, {lengths.sum():,} tokens of which {part.n_targets:,} are targets, "
        f"length {np.median(lengths):.0f} in the median and {lengths.max()} at most; {'; '.join(notes)}"
    )


def message(counts: Mapping[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())
