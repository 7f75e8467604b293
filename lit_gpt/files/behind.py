"""Writes files in a background thread, while the next tensor is read or computed."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

_SMALL = 2**16
"""Largest number of bytes of a piece that may be queued without limit."""
_AT_ONCE = 2**20
"""Number of bytes per write call: with 64 times as many, Linux 6.18 took two to seven times as long."""


class Behind:
    """A background writer of pieces of existing files, which holds at most one large piece at a time.

    An error of the disk is raised by the next call, or at the end of the `with` block.
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
        """Queues `data` to be written at byte `start` of a file, and returns its size in bytes.

        `data` must not change afterwards.
        """
        content = memoryview(data)
        if content.nbytes > _SMALL:
            self.wait()
        self.waiting.append(self.thread.submit(_put, path, start, content))
        return content.nbytes

    def wait(self) -> None:
        """Waits until all queued pieces are written; raises OSError if one could not be."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            future.result()


def _put(path: Path, start: int, content: memoryview) -> None:
    with open(path, "rb+", buffering=0) as file:
        file.seek(start)
        content = content.cast("B") if content.nbytes else content
        while content.nbytes:
            content = content[file.write(content[:_AT_ONCE]) :]
        if hasattr(os, "posix_fadvise"):  # starts writing to the disk now, which would otherwise wait for the end
            os.posix_fadvise(file.fileno(), start, file.tell() - start, os.POSIX_FADV_DONTNEED)


class FileBehind:
    """A file written through `Behind`, with the methods that `zipfile` needs to write an archive."""

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
