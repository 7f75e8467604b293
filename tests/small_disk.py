"""A small disk in memory that one process sees, which it fills up at one of its file operations."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from crash_points import Done, Fault, run_with

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
"""Flags of unshare(2): the process is root of its own, and what it mounts is seen by no other."""
N_BYTES = 4 * 2**20


def can_mount() -> bool:
    """Returns whether a process may mount a small disk that only it sees."""
    try:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


def _mount(folder: Path) -> None:
    """Mounts a small disk at `folder`, for this process alone."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    for done in (libc.unshare(_NEW_USER | _NEW_MOUNTS),):
        if done:
            raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={N_BYTES}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _fill(filler: Path) -> None:
    """Takes all the room that is left."""
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def on_small_disk(
    training: Callable[..., Callable[[], None]], folder: Path, kept: Path, log: Path, fault: Fault
) -> Done:
    """Returns what a run did on a small disk that is full from an operation on, up to another one or to the end.

    Args:
        training: makes the function that trains, given the run's folder.
        folder: where the disk is mounted.
        kept: gets a copy of the run's folder.
        fault: when the disk is full.
    """
    out, filler = folder / "out", folder / "filler"

    def happen(number: int, _: str) -> None:
        if number == fault.at:
            _fill(filler)
        elif number == fault.until:
            filler.unlink()

    def run() -> None:
        try:
            training(out, resume=True)()
        finally:
            filler.unlink(missing_ok=True)
            shutil.copytree(out, kept, symlinks=True)

    return run_with(run, out, log, before=lambda: _mount(folder), happen=happen)
