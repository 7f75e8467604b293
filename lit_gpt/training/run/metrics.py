"""metrics.csv, the figures of a run: lines that a full disk does not take wait for room, and are written then."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from lit_gpt.errors import DiskError
from lit_gpt.files import replace_with
from lit_gpt.report.metrics import rows_in
from lit_gpt.training.run.disk import reason

METRICS = "metrics.csv"
"""File in a run's folder with the figures of its micro-batches and validations."""
COLUMNS = [
    "iter",
    "step",
    "samples",
    "seconds",
    "loss",
    "val_loss",
    "learning_rate",
    "tokens_per_sec",
    "iter_time_ms",
    "n_tokens",
    "n_targets",
    "of_peak",
    "memory_gb",
]
"""Columns of metrics.csv."""


class MetricsFile:
    """The metrics.csv of a run.

    Args:
        goes_on: keep the lines of earlier processes; `cut` says up to where.
        say: prints a line.
        more: columns besides COLUMNS.
    """

    def __init__(
        self, path: Path, goes_on: bool = False, say: Callable[[str], None] = print, more: Sequence[str] = ()
    ) -> None:
        self.path, self.say, self.columns = path, say, (*COLUMNS, *more)
        self.head = (",".join(self.columns) + "\r\n").encode()
        self.n_rows = 0
        """Lines so far, without the names of the columns."""
        self.is_new = not (goes_on and path.is_file())
        """Whether what waits is the whole file, which replaces the one that is there."""
        self.waiting = self.head if self.is_new else b""
        """What is not written yet."""
        self.is_failing = False
        self.write()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a line, or keeps it until there is room."""
        self.waiting += self._text([row])
        self.n_rows += 1
        self.write()

    def write(self) -> None:
        """Writes what waits; says in one line when that begins to fail, and when it works again."""
        try:
            if self.is_new:
                replace_with(self.path, lambda path: path.write_bytes(self.waiting))
                self.is_new, self.waiting = False, b""
            else:
                self._append()
        except (DiskError, OSError) as e:
            if not self.is_failing:
                self.say(f"{self.path.name} is not written for now ({reason(e)}); the run goes on and tries again")
            self.is_failing = True
            return
        if self.is_failing:
            self.say(f"{self.path.name} is written again")
        self.is_failing = False

    def _append(self) -> None:
        """Appends what waits; a disk that fills up may take a part of it."""
        with open(self.path, "ab", buffering=0) as file:
            while self.waiting:
                n = file.write(self.waiting)
                self.waiting = self.waiting[n:]

    def cut(self, last_iter: int, n_rows: int | None) -> None:
        """Removes the lines of later iterations than `last_iter`, and what a killed process left of a line.

        Args:
            n_rows: lines to keep at most, as a later validation of the last iteration has none to tell it by; None is
                a checkpoint of an earlier version, which does not say.
        """
        try:
            there = b"" if self.is_new else self.path.read_bytes()
        except OSError as e:
            self.say(f"{self.path.name} cannot be read ({reason(e)}) and begins anew")
            there = b""
        rows = [row for row in _rows(there + self.waiting) if float(row["iter"]) <= last_iter][:n_rows]
        kept = self.head + self._text(rows)
        self.n_rows = len(rows)
        self.waiting, self.is_new = kept, True
        if there.startswith(kept):  # as it is, but for its end: cutting that needs no room
            try:
                os.truncate(self.path, len(kept))
                self.waiting, self.is_new = b"", False
            except OSError as e:
                self.say(f"{self.path.name} could not be cut ({reason(e)}); it is written anew")
        self.write()

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        """Returns the lines of these rows."""
        text = StringIO(newline="")
        csv.DictWriter(text, self.columns, extrasaction="ignore").writerows(rows)
        return text.getvalue().encode()


def _rows(content: bytes) -> Iterator[dict[str, str]]:
    """Yields the whole lines of a metrics.csv, by their columns' names, which an earlier version had fewer of."""
    whole = content[: content.rfind(b"\n") + 1]  # a line that was cut short has no end
    return rows_in(StringIO(whole.decode("utf-8", "replace"), newline=""))
