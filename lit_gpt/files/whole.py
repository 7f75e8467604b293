"""Writes files and folders completely or not at all.

Everything is written under a temporary name, `.<name>.<pid>.tmp` beside the target, and then renamed. Leftovers of a
killed process are removed when the same target is written next.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from stat import S_IMODE
from typing import IO, Any

from lit_gpt.errors import DiskError, UserError

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Numbers of the operating system's errors about a full disk, a limit on the size of files, and a used-up quota."""
FAILING = (errno.EIO, errno.EROFS)
"""Numbers of its errors about a disk that fails, or takes nothing more since it did."""


def write_text(path: Path, text: str) -> None:
    """Writes a text file completely or not at all."""
    replace_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_with(path: Path, write: Callable[[Path], Any]) -> None:
    """Replaces the file at `path` by one that `write` makes under a temporary name, once it is on the disk.

    Raises:
        DiskError: the disk is full or fails.
    """
    with naming_a_full_disk(path):
        temporary = temporary_beside(path)
        try:
            mode = _plain_mode(temporary)
            write(temporary)
            _give_mode(temporary, mode)
            sync(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):  # also there if it is a link to what `path` is, which the system leaves as it is
                temporary.unlink(missing_ok=True)


def replace_folder(folder: Path, write: Callable[[Path], Any], overwrite: bool) -> None:
    """Replaces `folder` by a new one that `write` fills under a temporary name, once it is on the disk.

    Args:
        overwrite: replace a folder that is not empty; it is deleted once the new one is complete.

    Raises:
        UserError: the folder holds something and `overwrite` is not set.
        DiskError: the disk is full or fails.
    """
    target = folder.resolve()  # a link stays one
    with naming_a_full_disk(folder):
        temporary = temporary_beside(target)
        _require_replaceable(folder, overwrite)
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            mode = temporary.stat().st_mode
            for path in temporary.rglob("*"):
                _give_mode(path, mode if path.is_dir() else mode & 0o666)
                sync(path)
            sync(temporary)
            put_in_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary: Path, target: Path) -> None:
    """Renames what `temporary_beside` named to `target`, and removes what was there before.

    A folder is replaced by two renames. If the process is killed between them, what was there before is put back by
    `temporary_beside`; if the second one fails, it is put back here.
    """
    if not os.path.lexists(target) or (temporary.is_symlink() and target.is_symlink()):
        temporary.replace(target)
        return
    aside = temporary.with_name(f"{temporary.name[:-4]}.old.tmp")
    target.replace(aside)
    try:
        temporary.replace(target)
    except OSError:
        aside.replace(target)
        raise
    with suppress(OSError):  # of no harm: it goes with the next leftovers
        remove(aside)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it, if it is there; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _plain_mode(path: Path) -> int:
    """Returns the mode of a new file at `path`; makes and removes one, since only that reveals the umask."""
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def _give_mode(path: Path, mode: int) -> None:
    """Gives a file or folder the permissions that the user's umask allows, however it was written.

    Writers that use a temporary file, such as safetensors' `save_file`, make it readable by its owner only.

    Args:
        mode: the mode of a newly made file or folder.
    """
    if not path.is_symlink() and S_IMODE(path.stat().st_mode) != S_IMODE(mode):
        path.chmod(S_IMODE(mode))


def _require_replaceable(folder: Path, overwrite: bool) -> None:
    """Checks that `folder` may be replaced; raises UserError if not.

    It may not be if it is a file, is not empty without `overwrite`, or contains the current or the home folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; pass another folder")
    if any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} is not empty; pass another folder, or --overwrite true to replace all that it holds")
    if any(p.is_relative_to(folder.resolve()) for p in (Path.cwd(), Path.home())):
        raise UserError(f"{folder} is not replaced: it holds the current or the home folder; pass another one")


def temporary_beside(path: Path) -> Path:
    """Returns the temporary name beside `path`, after removing what dead processes left for the same `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(\.old)?\.tmp")
    for found in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        match = pattern.fullmatch(found.name)
        if match is None or _is_alive(int(match[1])):
            continue
        if match[2] and not os.path.lexists(path):  # killed between the two renames of `put_in_place`
            found.replace(path)
        else:
            remove(found)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_alive(pid: int) -> bool:
    """Returns whether another process has this id.

    A leftover with our own id is from an earlier process that had the same one.
    """
    if pid == os.getpid():
        return False
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turns an OSError about a disk that is full or fails into a DiskError that names `path`."""
    try:
        yield
    except OSError as e:
        if e.errno not in (*FULL, *FAILING):
            raise
        way = "make room" if e.errno in FULL else "check the disk"
        raise DiskError(f"{path} could not be written ({e.strerror}); {way} or pass another place") from e


def require_room(n_bytes: int, path: Path) -> None:
    """Checks that the disk of `path` has `n_bytes` free; raises DiskError if not."""
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise DiskError(
            f"{path.parent} has {free:,} bytes free, and {n_bytes:,} are needed; make room or pass another place"
        )


def allocate(file: IO[bytes], n_bytes: int) -> None:
    """Reserves disk space for a file that was just opened, so that a full disk is noticed before the work is done.

    Raises:
        OSError: there is not enough space.
    """
    if n_bytes == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # if the filesystem cannot reserve space, writing will tell
            raise
