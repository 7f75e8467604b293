"""Gives a folder a second name: a symbolic link, or a copy where the system or the filesystem has no links."""

import os
import shutil
from pathlib import Path


def point(link: Path, folder: Path) -> None:
    """Makes `link`, beside or above `folder`, point to it, replacing what it pointed to before.

    Windows requires a privilege for links that few users have, and exFAT has no links: there `link` becomes a copy,
    which is made again only if the folder's contents differ.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
    except OSError:
        if link.is_dir() and not link.is_symlink() and _listing(link) == _listing(folder):
            return
        shutil.copytree(folder, temporary)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    temporary.replace(link)


def remove(link: Path) -> None:
    """Removes what `point` made, if it exists; the folder that a link points to stays."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    else:
        link.unlink(missing_ok=True)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the size and the modification time of each file in a folder."""
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}
