"""Gives a folder a second name: a symbolic link, or a copy where the system or the filesystem has no links."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from lit_gpt.files.whole import FAILING, FULL, put_in_place, remove, temporary_beside


def point(link: Path, folder: Path) -> None:
    """Makes `link`, beside or above `folder`, point to it, replacing what it pointed to before.

    Windows requires a privilege for links that few users have, and exFAT has no links: there `link` becomes a copy,
    which is made again only if the folder's contents differ. Where a copy of the whole was made that followed links,
    `link` is a folder of its own, and becomes a link again.

    Raises:
        OSError: the disk is full or fails; `link` points to what it did before.
    """
    temporary = temporary_beside(link)
    try:
        try:
            temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
        except OSError as e:
            if e.errno in (*FULL, *FAILING):
                raise
            if link.is_dir() and not link.is_symlink() and _listing(link) == _listing(folder):
                return
            shutil.copytree(folder, temporary, copy_function=link_or_copy)
        put_in_place(temporary, link)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def link_or_copy(source: str | Path, path: str | Path) -> str | Path:
    """Makes a hard link to a file, or a copy with its times where the filesystem has no links; returns its path."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copy2(source, path)
    return path


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the size and the modification time of each file in a folder."""
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}
