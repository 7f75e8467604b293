"""What became of rows, from the file to the arrays: counted while they are read, and said in lines."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.data.prepare.counts import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.split import prompt_of

_MOST_KEYS = 1000
"""Different keys that are counted one by one: in some files keys are data."""
_MOST_LINES = 12


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
