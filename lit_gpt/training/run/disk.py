"""What a full or failing disk keeps a run from writing does not end it: it is said in a line, and the run goes on."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from lit_gpt.errors import DiskError
from lit_gpt.files.whole import FAILING, FULL

_LONGEST = 300
"""Number of characters of an error that are said."""


def reason(error: Exception) -> str:
    """Returns what the operating system or a DiskError says of a write that failed, as one short line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return text.replace("\n", " ")[:_LONGEST]


@contextmanager
def going_on(
    what: str, say: Callable[[str], None] = print, failed: list[str] | None = None, then: str = "the run goes on"
) -> Iterator[None]:
    """Says in a line that `what` could not be written, if writing it raises an error of the disk, and goes on.

    Args:
        say: prints the line.
        failed: gets `what`, too.
        then: end of the line: what happens now, or what the user can do.
    """
    try:
        yield
    except (DiskError, OSError) as e:
        say(f"{what} could not be written ({reason(e)}); {then}")
        if failed is not None:
            failed.append(what)


class _Lenient:
    """A text stream that loses lines, instead of raising an error, while the disk of its file is full or fails."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with _unless_the_disk_fails():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_the_disk_fails():
            self.stream.flush()

    def end(self) -> None:
        """Writes what is held back, or drops it, which would otherwise fail once more when Python ends."""
        try:
            self.stream.flush()
        except OSError as e:
            if e.errno in (*FULL, *FAILING):
                with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def _unless_the_disk_fails() -> Iterator[None]:
    """Passes over an error of a disk that is full or fails."""
    try:
        yield
    except OSError as e:
        if e.errno not in (*FULL, *FAILING):
            raise


@contextmanager
def lenient_output() -> Iterator[None]:
    """Lets a run go on that prints into a file on a full disk, such as the log of `python finetune/lora.py > log`."""
    out, err = _Lenient(sys.stdout), _Lenient(sys.stderr)
    try:
        with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
            yield
    finally:
        out.end()
