"""Runs a reader on many damaged files, several in one process, and counts what came of them."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from damage import FUZZ_SECONDS, FUZZ_SEED, LONGEST_MESSAGE, MAX_SECONDS, PATIENCE, Outcome, outcome_of

from lit_gpt.errors import UserError

_LEAST_CASES = 64
"""Number of cases that a campaign has on a machine that is busy with other work, too."""
_BATCH = 16
"""Number of cases in a process; those of a batch with a fault run again one by one."""
_MOST_FAULTS = 5
"""Number of faults after which a campaign ends."""

Case = Callable[[Random, Path], Callable[[], object]]
"""A maker of cases: writes a damaged file into an empty folder, and returns what reads it."""


@dataclass
class Campaign:
    """What came of the cases of a campaign."""

    n_cases: int = 0
    n_refused: int = 0
    slowest: float = 0.0
    n_bytes: int = 0
    """Most memory that a process took."""
    faults: dict[int, Outcome] = field(default_factory=dict)
    """By number of the case, which `make(Random(f"{FUZZ_SEED}/{number}"), folder)` makes again."""

    def __str__(self) -> str:
        return (
            f"{self.n_cases:,} cases, {self.n_refused:,} refused, {len(self.faults)} faults, slowest "
            f"{self.slowest:.2f} s, most memory {self.n_bytes / 1e6:.0f} MB"
        )


def campaign_of(
    make: Case, place: Path, file_bytes: int, seconds: float = FUZZ_SECONDS, least: int = _LEAST_CASES
) -> Campaign:
    """Returns what came of reading damaged files for some seconds, and of no fewer than `least`.

    Args:
        make: draws a case.
        place: a folder for the files; each case has one in it, empty before it and removed after it.
        file_bytes: size of a file, which limits the memory.
        least: number of cases that it has if they take longer than `seconds`, or that it has at all for 0 seconds.
    """
    found, end = Campaign(), time.monotonic() + seconds
    while ((goes_on := time.monotonic() < end) or found.n_cases < least) and len(found.faults) < _MOST_FAULTS:
        numbers = range(found.n_cases, found.n_cases + _BATCH if goes_on else min(found.n_cases + _BATCH, least))
        outcome, notes = _run(make, numbers, place, file_bytes)
        found.n_cases = numbers.stop
        if outcome.is_fault:
            for i in numbers:
                alone, _ = _run(make, range(i, i + 1), place, file_bytes)
                if alone.is_fault:
                    found.faults[i] = alone
            if not found.faults:  # several together
                found.faults[numbers[0]] = outcome
            continue
        found.n_refused += notes["refused"]
        found.slowest, found.n_bytes = max(found.slowest, notes["slowest"]), max(found.n_bytes, outcome.n_bytes)
    return found


def _run(make: Case, numbers: range, place: Path, file_bytes: int) -> tuple[Outcome, dict[str, float]]:
    """Returns what came of some cases in one process, how many were refused, and the seconds of the slowest.

    They are those of the processor, or by the clock divided by PATIENCE, whichever is more.
    """
    notes = place / "notes.json"

    def read() -> None:
        refused, slowest = 0, 0.0
        for i in numbers:
            folder = place / str(i)
            folder.mkdir()
            reads = make(Random(f"{FUZZ_SEED}/{i}"), folder)
            started, computed = time.monotonic(), time.process_time()
            try:
                reads()
            except (UserError, OSError) as e:
                refused += 1
                assert len(str(e)) <= LONGEST_MESSAGE and "\n" not in str(e), f"case {i}: {str(e)[:2_000]!r}"
                print(str(e).encode("utf-8"))  # a message that cannot be printed is none
            waited = (time.monotonic() - started) / PATIENCE
            slowest = max(slowest, time.process_time() - computed, waited)
        notes.write_text(json.dumps({"refused": refused, "slowest": slowest}))

    outcome = outcome_of(read, file_bytes, max_seconds=MAX_SECONDS if len(numbers) == 1 else len(numbers) * MAX_SECONDS)
    for i in numbers:
        shutil.rmtree(place / str(i), ignore_errors=True)
    if outcome.kind != "read":
        return outcome, {}
    said = json.loads(notes.read_text())
    if said["slowest"] > MAX_SECONDS:
        return Outcome("hang", f"{said['slowest']:.1f} s", said["slowest"], 0), said
    return outcome, said
