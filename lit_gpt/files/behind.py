"""Files written in a thread of their own, while what comes next is read or computed."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

_SMALL = 2**16
"""Bytes; a piece that is no larger may wait in any number."""
_AT_ONCE = 2**20
"""Bytes that the system is given in one call: with 64 times as many Linux 6.18 took two to seven times as long."""


class Behind:
    """Writes pieces of existing files one after the other. One large piece at a time is on its way, and kept alive.

    An error of the disk comes out of the next call, or where the `with` ends.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[Future[None]] = []

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.thread.shutdown(cancel_futures=True)

    def write(self, path: Path, start: int, data: Any) -> int:
        """Put `data`, which must not change from now on, at byte `start` of a file; returns its bytes."""
        content = memoryview(data)
        if content.nbytes > _SMALL:
            self.wait()
        self.waiting.append(self.thread.submit(_put, path, start, content))
        return content.nbytes

    def wait(self) -> None:
        """Raises: OSError if a piece could not be written."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            future.result()


def _put(path: Path, start: int, content: memoryview) -> None:
    with open(path, "rb+", buffering=0) as file:
        file.seek(start)
        content = content.cast("B") if content.nbytes else content
        while content.nbytes:
            content = content[file.write(content[:_AT_ONCE]) :]
        if hasattr(os, "posix_fadvise"):  # on its way to the disk, which would wait for the end otherwise
            os.posix_fadvise(file.fileno(), start, file.tell() - start, os.POSIX_FADV_DONTNEED)


class FileBehind:
    """A file by `Behind`, as far as `zipfile` needs one to write an archive."""

    def __init__(self, behind: Behind, path: Path) -> None:
        self.behind, self.path, self.position = behind, path, 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        self.position = position
        return position

    def write(self, data: Any) -> int:
        n = self.behind.write(self.path, self.position, data)
        self.position += n
        return n

    def flush(self) -> None:
        self.behind.wait()

    def close(self) -> None:
        self.flush()
