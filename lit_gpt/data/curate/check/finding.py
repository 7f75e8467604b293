"""Defines a finding: one line that the check of a data set reports."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one test of a data set, good or bad."""

    level: Literal["ok", "warning", "useless"]
    """Severity; useless means that training on this data would teach nothing of use."""
    text: str

    def __str__(self) -> str:
        return f"{self.level:>8}  {self.text}"


def counted(scope: str, n: int, total: int, what: str, example: str = "", hint: str = "") -> Finding:
    """Returns a warning that `n` of `total` rows have a fault; an "ok" that none has if `n` is 0.

    Args:
        scope: which rows were counted: train, val or all.
        what: the fault as a predicate, as in "12 of 340 rows <have no target>".
        example: location of one of the rows.
        hint: remark to append.
    """
    if not n:
        return Finding("ok", f"{scope}: no rows {what}")
    location = f", such as {example}" if example else ""
    return Finding("warning", f"{scope}: {n:,} of {total:,} rows {what}{location}{'; ' + hint if hint else ''}")
