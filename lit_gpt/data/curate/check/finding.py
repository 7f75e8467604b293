"""What the check says about a data set, one line each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warning", "useless"]
    """useless: training on this data would be in vain."""
    text: str

    def __str__(self) -> str:
        return f"{self.level:>8}  {self.text}"


def counted(scope: str, n: int, total: int, what: str, example: str = "", hint: str = "") -> Finding:
    """A warning that `n` of `total` rows are so, or that none are.

    Args:
        scope: which rows were counted.
        what: the verb and what follows, as in "12 of 340 rows <have no target>".
        example: the place of one of them.
        hint: what else there is to say.
    """
    if not n:
        return Finding("ok", f"{scope}: no rows {what}")
    location = f", such as {example}" if example else ""
    return Finding("warning", f"{scope}: {n:,} of {total:,} rows {what}{location}{'; ' + hint if hint else ''}")
