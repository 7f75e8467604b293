"""Takes back the files that a step has added to a folder, if a later step fails."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nothing_left_of_a_failure(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Removes what the block adds to a folder under some names, if the block fails; what was there before stays."""
    added = [folder / name for name in names if not (folder / name).exists()]
    try:
        yield
    except BaseException:
        for path in added:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
