"""Counts what becomes of rows between the file and the token arrays, and says it in lines."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.split import prompt_of
from lit_gpt.data.prepare.texts import Texts

_MOST_KEYS = 1000
"""Most unused keys that are counted one by one; in some files keys are data, and there is no end of them."""
_MOST_LINES = 12
"""Most unused keys that are printed."""


@dataclass
class Counts:
    """What became of the rows of a split, and why some were dropped or truncated."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped rows, by reason."""
    cut: Counter[str] = field(default_factory=Counter)
    """Number of kept rows that were truncated, by where."""
    tokenized_apart: int = 0
    """Kept rows whose token ids differ from those of their text tokenized as a whole, since a token would span a prompt
    and its answer."""
    last_only: int = 0
    """Kept rows in which not all answers are supervised, since the chat template renders them, or what precedes them,
    otherwise than at generation; the last answer always is."""
    answers: int = 0
    """Answers of the kept rows that the rows themselves want supervised."""
    taught: int = 0
    """Answers of the kept rows that are supervised."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Kept rows with a text that the chat template does not render as a whole, by kind of text."""

    def add(self, other: "Counts") -> None:
        """Adds the counts of other rows to these."""
        for name in (f.name for f in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, mine + theirs)

    def record(self) -> dict[str, Any]:
        """Returns the counts as meta.json holds them; the last two keys only where something is not supervised."""
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "cut": dict(self.cut),
            "tokenized_apart": self.tokenized_apart,
            "last_answer_only": self.last_only,
            **({"answers": self.answers, "answers_taught": self.taught} if self.taught < self.answers else {}),
            **({"not_shown": dict(self.left_out)} if self.left_out else {}),
        }

    def notes(self) -> list[str]:
        """Returns remarks about the kept rows, one sentence each."""
        found = []
        if self.tokenized_apart:
            found.append(
                f"in {self.tokenized_apart:,} rows the ids differ from those of tokenizing prompt and response as one"
            )
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
    """What one pass over all rows found before anything is tokenized."""

    n_rows: int = 0
    n_chat: int = 0
    """Number of rows that are conversations."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of entries that gave no row, by reason."""
    unused: Counter[str] = field(default_factory=Counter)
    """Number of rows whose entry has a key that is not read, by key."""
    prompts: Texts = field(default_factory=Texts)
    """The prompt of each row, if prompts were asked for."""
    systems: Texts = field(default_factory=Texts)
    """The system text of each row, likewise."""

    def add(self, row: Row, with_prompt: bool) -> None:
        """Counts a row, and keeps its prompt and system text if asked to."""
        self.n_rows += 1
        self.n_chat += row.is_chat
        for key in row.unused:
            self.unused[key if key in self.unused or len(self.unused) < _MOST_KEYS else "and others"] += 1
        if with_prompt:
            self.prompts.append(prompt_of(row))
            self.systems.append(row.system)


@dataclass
class Part:
    """What was written of a split: its counts, lengths (n,) and number of targets."""

    counts: Counts
    lengths: np.ndarray
    n_targets: int


def print_unused(unused: Mapping[str, int]) -> None:
    """Prints the keys that are not read; without it, a context or a weight under another name would go unnoticed."""
    for key, n in list(unused.items())[:_MOST_LINES]:
        print(f"the key {key!r} of {n:,} row{'s' * (n != 1)} is not used")
    if len(unused) > _MOST_LINES:
        print(f"nor are {len(unused) - _MOST_LINES:,} other keys; meta.json names them")


def summary(part: Part) -> str:
    """Returns one line about a split: its samples, tokens and lengths, and what was dropped or truncated."""
    counts, lengths = part.counts, part.lengths
    notes = [f"dropped: {in_words(counts.dropped)}"] if counts.dropped else []
    notes += [f"cut: {in_words(counts.cut)}"] if counts.cut else []
    notes = notes or ["none dropped or cut"]
    notes += counts.notes()
    if not len(lengths):
        return f"no samples; {'; '.join(notes)}"
    return (
        f"{len(lengths):,} samples, {lengths.sum():,} tokens of which {part.n_targets:,} are targets, "
        f"length {np.median(lengths):.0f} in the median and {lengths.max():,} at most; {'; '.join(notes)}"
    )


def in_words(counts: Mapping[str, int]) -> str:
    """Returns counts in words, such as "3 empty response, 1 no answer"."""
    return ", ".join(f"{n:,} {what}" for what, n in counts.items())
