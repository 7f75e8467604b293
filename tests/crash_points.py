"""Stops a process at one of its file operations, or lets it meet an error of the disk there, and says what it did.

Python tells an audit hook of each operation before it is done: opening a file to write, renaming, removing, linking
and so on. What torch writes is outside Python, and counts as one operation of its own.
"""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from damage import Outcome, outcome_of

_ASKED = os.environ.get("LIT_GPT_CRASH_TESTS", "")
EVERY = bool(_ASKED)
"""Whether each operation is tried, which takes hours; otherwise some of each kind are."""
_PART, _PARTS = (1, 1) if _ASKED in ("", "all") else map(int, _ASKED.split("/"))
"""Which part of all operations is tried: with `3/20`, the 3rd of 20 parts, each of which is spread over the run."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KILLED = 137
MAX_SECONDS = 120.0
_PATIENCE = 20.0
"""Times as many seconds by the clock: a run of hours may stand still while its machine does other work."""
_WITH_FOLDER = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.symlink": 2, "os.rename": 2, "os.link": 2}
"""Operation -> which of its arguments is a descriptor that its path is relative to."""
_PATHS = _WITH_FOLDER | {"os.truncate": 2, "os.chmod": 2}
NEEDS_ROOM = ("open", "os.mkdir", "os.symlink", "os.link", "torch.save")
"""Operations that a full disk can refuse."""


@dataclass(frozen=True)
class Fault:
    """What happens at file operations of a process.

    Args:
        at: number of the operation, from 1.
        error: number of the error that it raises; None ends the process before the operation.
        until: number of the first operation that works again, of those that need room if `error` is ENOSPC or EDQUOT.
        torn: the file that was written before is half there when the process ends.
    """

    at: int
    error: int | None = None
    until: int | None = None
    torn: bool = False

    @property
    def wants_room(self) -> bool:
        return self.error in (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Done:
    """What a process did."""

    outcome: Outcome
    """As `outcome_of` says; a process that was killed is a crash."""
    operations: list[tuple[str, str]] = field(default_factory=list)
    """Name and path of each, if the process came to an end of its own."""
    said: str = ""
    """Its output."""

    @property
    def was_killed(self) -> bool:
        return self.outcome.kind == "crash" and self.outcome.text.endswith(f" {KILLED}")


class _Watch:
    """The audit hook of a process: counts its operations within a folder, and does what its fault says."""

    def __init__(self, folder: Path, fault: Fault | None, happen: Callable[[int, str], None] | None) -> None:
        self.folder, self.fault, self.happen = str(folder.resolve()), fault, happen
        self.operations: list[tuple[str, str]] = []
        self.written = ""
        """The file that is being written."""

    def __call__(self, event: str, args: tuple) -> None:
        if event not in _PATHS and event != "open":
            return
        path, flags = args[0], args[2] if event == "open" else 0
        if event == "open" and not (isinstance(flags, int) and flags & _WRITING):
            return
        if event == "os.symlink":
            path = args[1]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        descriptor = args[_WITH_FOLDER[event]] if event in _WITH_FOLDER else -1
        self.pass_by(event, self.absolute(os.fsdecode(path), descriptor), bool(flags & os.O_TRUNC))

    def absolute(self, path: str, descriptor: int) -> str:
        base = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else os.getcwd()
        return os.path.normpath(os.path.join(base, path))

    def pass_by(self, event: str, path: str, is_writing: bool) -> None:
        """Counts an operation within the folder, before it is done."""
        if not path.startswith(self.folder + os.sep):
            return
        self.operations.append((event, os.path.relpath(path, self.folder)))
        number, fault, written = len(self.operations), self.fault, self.written
        if self.happen is not None:
            self.happen(number, written)
        self.written = path if is_writing else ""
        if fault is None or number < fault.at or (fault.until is not None and number >= fault.until):
            return
        if fault.error is None:
            if fault.torn and written and os.path.isfile(written):
                self.fault = None
                os.truncate(written, os.path.getsize(written) // 2)
            os._exit(KILLED)
        if not fault.wants_room or event in NEEDS_ROOM:
            raise OSError(fault.error, os.strerror(fault.error), path)


def run_with(
    action: Callable[[], object],
    folder: Path,
    log: Path,
    fault: Fault | None = None,
    before: Callable[[], None] = lambda: None,
    happen: Callable[[int, str], None] | None = None,
) -> Done:
    """Returns what a forked process did that calls `action()`, with a fault at an operation within `folder`.

    Args:
        log: file for what it says, outside the folder.
        before: is called in the process at first.
        happen: is called before each operation, with its number and the file that the one before it wrote, or nothing.
    """
    listed = log.with_suffix(".operations")
    listed.unlink(missing_ok=True)

    def watched() -> None:
        torch.set_num_threads(1)
        before()
        watch, save = _Watch(folder, fault, happen), torch.save

        def saved(state: object, path: Path, *args: object, **kwargs: object) -> None:
            watch.pass_by("torch.save", os.path.abspath(path), True)
            save(state, path, *args, **kwargs)
            watch.written = os.path.abspath(path)

        torch.save = saved
        sys.addaudithook(watch)
        with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                action()
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                listed.write_text("\n".join(f"{event}\t{path}" for event, path in watch.operations))

    outcome = outcome_of(watched, file_bytes=2**33, max_seconds=MAX_SECONDS, patience=_PATIENCE)
    lines = listed.read_text().splitlines() if listed.is_file() else []
    return Done(outcome, [tuple(line.split("\t")) for line in lines], log.read_text() if log.is_file() else "")


def every(operations: list[tuple[str, str]]) -> list[int]:
    """Returns the numbers of the operations; of many in a row that are the same, the first two and the last."""
    numbers = []
    for number, here in enumerate(operations, 1):
        around = operations[max(0, number - 3) : number + 1]
        if around != [here] * 4:
            numbers.append(number)
    return numbers


def kinds(operations: list[tuple[str, str]]) -> list[int]:
    """Returns the numbers of the first operation of each name and file; numbers in a file's name do not count."""
    seen: dict[tuple[str, str], int] = {}
    for number, (event, path) in enumerate(operations, 1):
        seen.setdefault((event, "".join("#" if c.isdigit() else c for c in path)), number)
    return sorted(seen.values())


def some(numbers: Iterable[int], n: int) -> list[int]:
    """Returns n of the numbers, from the first to the last; all, or a part, if each operation is to be tried."""
    numbers = list(numbers)
    if EVERY or len(numbers) <= n:
        return numbers[_PART - 1 :: _PARTS] if EVERY else numbers
    return sorted({numbers[round(i * (len(numbers) - 1) / (n - 1))] for i in range(n)})
