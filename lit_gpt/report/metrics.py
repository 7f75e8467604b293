"""Reads metrics.csv, the figures of a run, of which a line may be damaged or cut short where the run was killed."""

import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_NEEDED = ("iter", "step", "samples", "seconds")
"""Columns that have a value in each line."""
_FIGURES = ("loss", "val_loss", "learning_rate", "tokens_per_sec", "n_tokens", "n_targets", "of_peak", "memory_gb")
"""Columns that have a value in some lines."""
PAIR_FIGURES = ("chosen_reward", "rejected_reward", "margin", "accuracy", "chosen_logp")
"""Columns of runs that learn from preferences; `val_` stands before those of validations."""
ROLLOUT_FIGURES = ("reward", "answer_tokens", "idle", "clipped", "kl")
"""Columns of runs that learn from graded answers; `idle` is the share of answers whose group has one reward."""
_EITHER = (*PAIR_FIGURES, *ROLLOUT_FIGURES)
_OBJECTIVES = (*_EITHER, *(f"val_{name}" for name in _EITHER), "n_terms")
_LARGEST = 1e15
"""Largest value of a figure; the loss of a run that diverged may also be infinite or NaN."""
_LONGEST_LINE = 10_000
"""Largest number of characters of a line."""


class Metrics:
    """The figures of a run, one value a line and column, as numbers."""

    def __init__(self) -> None:
        self.columns = {name: array("d") for name in (*_NEEDED, *_FIGURES, *_OBJECTIVES)}
        self.given = {name: bytearray() for name in (*_FIGURES, *_OBJECTIVES)}
        """Whether a line has a value, a byte a line."""

    def __len__(self) -> int:
        return len(self.columns["step"])

    def add(self, row: dict[str, str]) -> None:
        """Appends the values of a line."""
        for name, column in self.columns.items():
            column.append(float(row.get(name) or 0))
        for name, given in self.given.items():
            given.append(bool(row.get(name)))

    def rows(self, *names: str) -> Iterator[tuple[float, ...]]:
        """Yields the values of the lines that have one in each of these columns, which are not among _NEEDED."""
        given = [self.given[name] for name in names]
        for i in range(len(self)):
            if all(present[i] for present in given):
                yield tuple(self.columns[name][i] for name in names)

    def column(self, name: str) -> list[tuple[float, float]]:
        """Returns (step, value) of the lines that have a value in a column."""
        steps, values, given = self.columns["step"], self.columns[name], self.given[name]
        return [(steps[i], values[i]) for i in range(len(self)) if given[i]]

    @property
    def terms(self) -> str:
        """Column with the number of terms that the loss is a mean of: pairs, or else targets."""
        return "n_terms" if any(self.given["n_terms"]) else "n_targets"

    def by_step(self, name: str, weight: str) -> list[tuple[float, float]]:
        """Returns (step, weighted mean) of a column over the lines of each step that have a value and a weight."""
        sums: dict[float, tuple[float, float]] = {}
        steps, given, weighed = self.columns["step"], self.given[name], self.given[weight]
        for i in range(len(self)):
            if given[i] and weighed[i]:
                total, n = sums.get(steps[i], (0.0, 0.0))
                more = self.columns[weight][i]
                sums[steps[i]] = (total + self.columns[name][i] * more, n + more)
        return [(step, total / max(n, 1e-9)) for step, (total, n) in sums.items()]


def read_metrics(path: Path) -> Metrics:
    """Returns the figures of a run; lines that are damaged are left out."""
    metrics = Metrics()
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in rows_in(file):
            metrics.add(row)
    return metrics


def rows_in(file: TextIO) -> Iterator[dict[str, str]]:
    """Yields the lines of a metrics.csv that are whole, by column; those of unknown columns are left out."""
    known = (*_NEEDED, *_FIGURES, *_OBJECTIVES, "iter_time_ms")
    names = next(iter(_split(file)), [])
    for values in _split(file):
        row = {name: value for name, value in zip(names, values, strict=False) if name in known}
        if len(values) == len(names) and _is_whole(row):
            yield row


def _split(file: TextIO) -> Iterator[list[str]]:
    """Yields the values of each line, of which none has a quotation mark or a line break."""
    while line := file.readline(_LONGEST_LINE):
        yield line.rstrip("\r\n").split(",")


def _is_whole(row: dict[str, str]) -> bool:
    """Returns whether a line has all that each line has, and nothing but possible numbers."""
    if any(not row.get(name) for name in _NEEDED):
        return False
    for name, text in row.items():
        try:
            value = float(text) if text else 0.0
        except ValueError:
            return False
        if name.endswith("loss") and not math.isfinite(value):
            continue
        if not -_LARGEST <= value <= _LARGEST or (name in _NEEDED and value < 0):
            return False
    return True
