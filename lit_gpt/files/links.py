"""A folder under a second name: a link, or a copy where the system or the filesystem has none."""

import os
import shutil
from pathlib import Path


def point(link: Path, folder: Path) -> None:
    """Let `link`, beside or above `folder`, lead to it in place of what it led to. Windows wants a right for links that
    few users have, and exFAT has none: there a copy takes the name, made again only when it is of another folder."""
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
    """Remove what `point` made, if it is there; what a link leads to stays."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    else:
        link.unlink(missing_ok=True)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file."""
    return {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()}
