"""Runs numbered random cases of a section until its time is over, each in a forked process, and counts what came of it.

The harness is that of the tests, `tests/damage.py`, which damages files and runs readers in a process of their own. It
stays there, where most of its users are, and this benchmark puts that folder on its path; the other way round, the
tests would need the benchmarks.
"""

import faulthandler
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from damage import MAX_SECONDS, Outcome, outcome_of

_MOST_BYTES = 4 * 10**9
"""Memory that a case can ask for on top of what the process has; asking for more fails, and is a fault."""
_FRAME = re.compile(r'File "(?:[^"]*/)?(lit_gpt/[^"]*)", line (\d+)')
_ERROR = re.compile(
    r"^([A-Za-z_][\w.]*?(?:Error|Exception|Exit|Interrupt|Iteration|Expired)\w*)(?::.*)?$", re.MULTILINE
)
"""The line of a traceback that says what was raised; torch's go on with another stack."""
_NO_MEMORY = ("MemoryError", "bad_alloc", "can't allocate memory", "not enough memory", "Unable to allocate")
_LEAST_CASES = 20
_SHOWN = 12
"""Last lines of a traceback that are shown."""


@dataclass(frozen=True)
class Case:
    """One damaged input, and what reads it."""

    read: Callable[[], object]
    n_bytes: int = 0
    """Size of the damaged file."""


@dataclass(frozen=True)
class Section:
    """A kind of input, with a generator of cases."""

    name: str
    make: Callable[[Random, Path], Case]
    """Writes a damaged input into an empty folder, and returns the case."""
    prepare: Callable[[], object] = lambda: None
    """Makes the material that `make` damages."""
    outcome: Callable[[Random, Path], Outcome] | None = None
    """Runs a case that is more than one reader, instead of `make`."""


@dataclass
class Fault:
    """A distinct fault, and the cases that have it."""

    kind: str
    place: str
    """Type of the exception, and the innermost line of lit_gpt."""
    text: str
    cases: list[int]


@dataclass
class Counts:
    """What came of the cases of one section."""

    section: str
    n: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    seconds: float = 0.0
    faults: dict[str, Fault] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    """What refusals say, without names and numbers."""

    def add(self, number: int, outcome: Outcome) -> None:
        """Counts the outcome of a case."""
        self.n += 1
        self.kinds[outcome.kind] += 1
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.n_bytes)
        if outcome.kind == "refused":
            self.refusals[_without_values(outcome.text)] += 1
        if outcome.is_fault:
            place = place_of(outcome)
            fault = self.faults.setdefault(f"{outcome.kind} {place}", Fault(outcome.kind, place, outcome.text, []))
            fault.cases.append(number)

    @property
    def n_faults(self) -> int:
        """Number of cases that are faults."""
        return sum(n for kind, n in self.kinds.items() if kind not in ("read", "refused"))


def place_of(outcome: Outcome) -> str:
    """Returns what distinguishes a fault from others: the type of the exception, and the innermost line of lit_gpt."""
    frames = _FRAME.findall(outcome.text)
    last = outcome.text.strip().splitlines()[-1] if outcome.text.strip() else ""
    if not frames:
        return _without_values(last)
    stack = outcome.kind in ("hang", "crash")  # of faulthandler, the innermost line first
    file, line = frames[0 if stack else -1]
    raised = _ERROR.findall(outcome.text)
    error = outcome.kind if stack else raised[-1] if raised else last.partition(":")[0][:60]
    return f"{error} at {file}:{line}"


def _without_values(text: str) -> str:
    """Returns the beginning of a message without paths, quoted values and numbers."""
    text = re.sub(r"(.)\1{8,}", "_", re.sub(r"\S*/\S*", "PATH", text[:2_000]))
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+\d.,]*\d\S*", "_", text)[:90]


@dataclass(frozen=True)
class Limits:
    """How long a section runs, and a case may take."""

    seconds: float = 60.0
    """Of a section, which has at least `_LEAST_CASES` cases, however busy the machine is."""
    n_cases: int | None = None
    """Cases of a section, instead of seconds."""
    patience: float = 1.0
    """Times the 10 s that a case may take until it is killed; a case may always use no more than 10 s of processor."""


def run(section: Section, folder: Path, seed: int, limits: Limits = Limits()) -> Counts:
    """Runs cases 0, 1, 2 ... of a section until the time is over, or that many cases were run."""
    counts, started, number = Counts(section.name), time.monotonic(), 0
    least, seconds = (_LEAST_CASES, limits.seconds) if limits.n_cases is None else (limits.n_cases, 0)
    while number < least or time.monotonic() - started < seconds:
        outcome = run_case(section, folder, seed, number=number, patience=limits.patience)
        counts.add(number, outcome)
        number += 1
    counts.seconds = time.monotonic() - started
    return counts


def run_case(section: Section, folder: Path, seed: int, number: int, patience: float = 1.0) -> Outcome:
    """Runs a case in a folder of its own, which stays until the next one; finds what it left and wrote outside."""
    random = Random(f"{seed} {section.name} {number}")
    work = folder / "work" / section.name
    shutil.rmtree(work, ignore_errors=True)
    place = work / "box" / "case"
    place.mkdir(parents=True)
    if section.outcome is not None:
        outcome = section.outcome(random, place)
    else:
        outcome = _read(section.make(random, place), folder, patience)
    outside = [p for p in (*work.iterdir(), *(work / "box").iterdir()) if p not in (place, place.parent)]
    if outside and not outcome.is_fault:
        outcome = replace(outcome, kind="outside", text=f"wrote {outside[0].relative_to(work)}; {outcome.text}")
    left = [p for p in place.rglob(".*") if p.name.endswith(".tmp")]
    if left and not outcome.is_fault:
        outcome = replace(outcome, kind="leftover", text=f"left {left[0].relative_to(place)}; {outcome.text}")
    return outcome


def _read(case: Case, folder: Path, patience: float) -> Outcome:
    """Runs the reader of a case with a limit of memory, and whatever processes it started end with it."""
    pid_of = mmap.mmap(-1, 8)
    trace = folder / "work" / "trace.txt"
    trace.unlink(missing_ok=True)

    def read() -> None:
        os.setsid()
        pid_of[:] = struct.pack("q", os.getpid())
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * mmap.PAGESIZE + _MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(MAX_SECONDS) - 1, int(MAX_SECONDS) + 1))  # SIGXCPU, then SIGKILL
        with open(trace, "w") as file:
            faulthandler.enable(file)
            faulthandler.dump_traceback_later(MAX_SECONDS * patience - 0.5, file=file)
            faulthandler.register(signal.SIGXCPU, file)
            try:
                case.read()
            finally:
                faulthandler.cancel_dump_traceback_later()
                faulthandler.unregister(signal.SIGXCPU)
                faulthandler.disable()

    outcome = outcome_of(read, case.n_bytes, patience=patience)
    (pid,) = struct.unpack("q", pid_of[:])
    if pid:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if outcome.kind in ("hang", "crash") and trace.is_file():
        outcome = replace(outcome, text=f"{trace.read_text(errors='replace')[:3_000]}\n{outcome.text}")
    if outcome.kind == "crash" and outcome.text.endswith(f"ended with {-signal.SIGKILL}"):
        outcome = replace(outcome, kind="hang")  # the limit of the processor
    if outcome.kind == "exception" and any(sign in outcome.text for sign in _NO_MEMORY):
        outcome = replace(outcome, kind="memory")
    return outcome


def in_child(do: Callable[[], Any], max_seconds: float = 300.0) -> None:
    """Does something in a forked process, so that this one never starts a thread, which no fork would survive.

    Raises:
        RuntimeError: it failed.
    """
    outcome = outcome_of(do, 2**40, max_seconds, patience=1)
    if outcome.kind != "read":
        raise RuntimeError(f"cannot make the material: {outcome.kind}\n{outcome.text}")


def lines_of(all_counts: list[Counts]) -> Iterator[str]:
    """Yields the table of all sections, and each distinct fault once."""
    yield "| section | seconds | cases | read | refused | faults | slowest, s | largest, MB |"
    yield "|---|---|---|---|---|---|---|---|"
    for c in all_counts:
        bad = ", ".join(f"{n} {kind}" for kind, n in sorted(c.kinds.items()) if kind not in ("read", "refused"))
        yield (
            f"| {c.section} | {c.seconds:,.0f} | {c.n:,} | {c.kinds['read']:,} | {c.kinds['refused']:,} | {bad or 0} | "
            f"{c.slowest:.2f} | {c.largest / 1e6:.0f} |"
        )
    n, n_faults = sum(c.n for c in all_counts), sum(c.n_faults for c in all_counts)
    yield f"{n:,} cases, {n_faults:,} faults"
    for c in all_counts:
        for fault in sorted(c.faults.values(), key=lambda fault: -len(fault.cases)):
            more = f", {len(fault.cases)} cases" if len(fault.cases) > 1 else ""
            yield f"\n--case {c.section}:{fault.cases[0]}{more}: {fault.kind}: {fault.place}"
            said = [match.end() for match in _ERROR.finditer(fault.text)]
            lines = fault.text[: said[-1] if said else None].strip().splitlines()
            shown = lines[:_SHOWN] if fault.kind in ("hang", "crash") else lines[-_SHOWN:]
            yield from ("    " + line[:200] for line in shown)


def as_json(all_counts: list[Counts]) -> list[dict[str, Any]]:
    """Returns the counts of all sections as JSON takes them."""
    return [
        {
            "section": c.section,
            "cases": c.n,
            "kinds": dict(c.kinds),
            "slowest_seconds": c.slowest,
            "largest_bytes": c.largest,
            "seconds": c.seconds,
            "faults": [vars(fault) for fault in c.faults.values()],
            "refusals": dict(c.refusals.most_common(200)),
        }
        for c in all_counts
    ]


def summed(found: list[dict[str, Any]]) -> list[Counts]:
    """Returns the counts of several calls, added up by section, in the order in which sections first come.

    Args:
        found: what `as_json` returned, of all calls; the case of a fault is to be repeated with the seed of its call.
    """
    sums: dict[str, Counts] = {}
    for one in found:
        counts = sums.setdefault(one["section"], Counts(one["section"]))
        counts.n += one["cases"]
        counts.seconds += one["seconds"]
        counts.kinds.update(one["kinds"])
        counts.refusals.update(one["refusals"])
        counts.slowest = max(counts.slowest, one["slowest_seconds"])
        counts.largest = max(counts.largest, one["largest_bytes"])
        for fault in one["faults"]:
            same = counts.faults.setdefault(f"{fault['kind']} {fault['place']}", Fault(**fault | {"cases": []}))
            same.cases += fault["cases"]
    return list(sums.values())
