"""Keeps two processes from writing to the same folder.

The lock is one of the operating system (flock), which ends with its process, however that ends: what a killed process
leaves of the hidden file beside the folder locks nothing, and the next one uses it again. The package filelock, which
downloads use, empties that file in versions that we admit, and the message is to read there who has the lock.
"""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_gpt.errors import DiskError, UserError
from lit_gpt.files.whole import FULL

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
"""What the system answers if another process has the lock; EDEADLK is Windows's."""
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""What the system answers if no file can be made beside the folder."""
_LONGEST = 300
"""Number of characters of a command that are told."""
_held: set[int] = set()
"""Open files of the locks that this process has."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Lets no other process of this toolkit write to `folder`, which need not exist yet, while the block runs.

    A filesystem without locks is noted on stderr, and the block runs without one.

    Raises:
        UserError: another process writes there, which the message names, or nothing can be written there.
        DiskError: the disk is full or fails.
    """
    target = folder.resolve()  # a link and what it points to are one folder
    made = [p for p in target.parents if not p.exists()]
    path, descriptor = None, None
    try:
        path, descriptor = _locked(folder, target)
        yield
    finally:
        if path is not None and descriptor is not None:
            with suppress(OSError):  # Windows removes no open file
                path.unlink() if _is_still(descriptor, path) else None
            _held.discard(descriptor)
            os.close(descriptor)
        for parent in made:
            with suppress(OSError):  # not empty, or gone
                parent.rmdir()


def _locked(folder: Path, target: Path) -> tuple[Path, int | None]:
    """Returns the file of the lock and its descriptor; None as the descriptor if the filesystem has no locks."""
    while True:
        path, descriptor = _open(target)
        try:
            _lock(descriptor)
        except OSError as e:
            taken = e.errno in _TAKEN
            who = _who(path) if taken else ""
            os.close(descriptor)
            if taken:
                raise UserError(f"{folder} is in use: {who}; wait for it or end it, or pass another folder") from e
            with suppress(OSError):
                path.unlink()
            note = f"note: {path.parent} has no locks ({e.strerror}); start nothing else that writes {folder}"
            print(note, file=sys.stderr)
            return path, None
        if _is_still(descriptor, path):
            _held.add(descriptor)
            _sign(descriptor)
            return path, descriptor
        os.close(descriptor)  # the process that had it has removed the file in between


def _open(target: Path) -> tuple[Path, int]:
    """Returns a file for the lock of a folder and its descriptor: beside the folder, or in it if that cannot be."""
    path = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return path, _descriptor(path)
    except OSError as e:
        if e.errno in _NO_PLACE and os.access(target, os.W_OK):
            return target / ".lock", _descriptor(target / ".lock")
        if e.errno in (*FULL, errno.EIO):
            raise DiskError(f"{path} could not be written ({e.strerror}); make room, or check the disk") from e
        raise UserError(f"{target.parent} cannot be written ({e.strerror}); pass another folder") from e


def _descriptor(path: Path) -> int:
    """Opens the file of a lock; one that another user's process left can be locked although it cannot be written."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.is_file():
            raise
        return os.open(path, os.O_RDONLY)


def _lock(descriptor: int) -> None:
    """Takes the lock of an open file; raises OSError if another process has it, or there are no locks."""
    if fcntl is None:
        import msvcrt

        os.lseek(descriptor, 2**20, os.SEEK_SET)  # what is locked there cannot be read, and the name is to be
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still(descriptor: int, path: Path) -> bool:
    """Returns whether an open file is the one that has this name now."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _sign(descriptor: int) -> None:
    """Writes into the file of the lock who has it."""
    command = " ".join([os.path.basename(sys.executable or "python"), *sys.argv])
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command[:_LONGEST],
    }
    with suppress(OSError):  # a full disk, or another user's file: the lock holds, and has no name
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(who).encode())


def _who(path: Path) -> str:
    """Returns what is known of the process that has a lock."""
    for _ in range(20):  # it may have locked the file and not signed it yet
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            with open(path, "rb") as file:
                who = json.loads(file.read(8 * _LONGEST))
            words = {key: "".join(c for c in str(who[key]) if c.isprintable())[:_LONGEST] for key in who}
            return "process {pid} on {host} has been writing it since {since} ({command})".format(**words)
        time.sleep(0.05)
    return "another process is writing it"


def _let_go() -> None:
    """Closes the locks of a parent in its forked child, which would hold them when the parent has ended."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
