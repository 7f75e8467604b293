"""Reads the checksums that torch's files hold of their tensors, and compares the tensors with them.

A torch file is a zip archive, whose directory has the size and the CRC-32 of each member. torch writes them and, since
it maps the file into memory, compares nothing when it reads.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lit_gpt.errors import UserError
from lit_gpt.files.pickles import Place, places, uncompared
from lit_gpt.files.tensors import first_line

_BLOCK = 2**20
"""Number of bytes that are read at once."""
_MAX_THREADS = 4
"""Number of members that are compared at once; zlib's CRC-32 has about 1 GB/s a core."""


class _Contents(NamedTuple):
    """Hashes by which the tensors in one file are told from those in another."""

    digest: str
    """Hash of names, dtypes, shapes and all bytes."""
    layout: str
    """Hash of names, dtypes and shapes."""


def contents_of(path: Path) -> _Contents:
    """Returns hashes of the tensors in a torch file, by the file's own checksums.

    This takes no longer for a larger file, and gives the same for the same tensors in another order or archive. Only a
    file without checksums, as torch writes it with `set_crc32_options(False)`, is read as a whole.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.rpartition("data/")[2]: entry for entry in archive.infolist()}
            index = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
            has_checksums = _crc(archive, index) == index.CRC
            lines, layout = [], []
            for name, place in sorted(places(path).items()):
                layout.append(f"{name} {place.dtype} {place.shape}")
                lines.append(f"{layout[-1]} {_values(place, members[place.key], archive, has_checksums)}")
    except OSError:
        raise
    except Exception as e:  # a damaged archive may raise anything
        raise UserError(f"{path} is truncated or damaged ({first_line(e)}); make it again") from e
    digest, layout = (hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] for texts in (lines, layout))
    return _Contents(digest, layout)


def _values(place: Place, entry: zipfile.ZipInfo, archive: zipfile.ZipFile, has_checksums: bool) -> str:
    """Returns a text that tells the values of a tensor, which are in the member `entry`, from others."""
    crc = entry.CRC if has_checksums else _crc(archive, entry)
    return f"{place.strides} {place.offset} {entry.file_size} {crc:08x}"


def _crc(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Returns the CRC-32 of a member's content, whatever the directory says."""
    crc = 0
    with archive.open(uncompared(entry)) as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


@contextmanager
def intact(path: Path, remedy: str) -> Iterator[None]:
    """Compares a torch file with its checksums in other threads while the block runs, which reads it.

    Args:
        remedy: what makes the file again, for the message.

    Raises:
        UserError: at the end of the block, if a byte of a tensor is another one than was written.
    """
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        try:
            names = _names(path)
            comparing = [threads.submit(_compare, path, name) for name in names]
            yield
            for future in comparing:
                future.result()
        except _DamagedError as e:
            raise UserError(f"{path} is damaged ({e}); make it again with {remedy}") from e
        finally:
            threads.shutdown(cancel_futures=True)


def require_intact(path: Path, remedy: str) -> None:
    """Checks that a torch file holds what was written, by its checksums; raises UserError if not."""
    with intact(path, remedy):
        pass


class _DamagedError(Exception):
    """A file holds something else than was written; the message says what."""


def _names(path: Path) -> list[str]:
    """Returns the names of an archive's members that hold something, the largest first."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.file_size]
    except OSError:
        raise
    except Exception as e:  # a damaged archive may raise anything
        raise _DamagedError(first_line(e)) from e
    if not any(entry.CRC for entry in entries):  # torch wrote it with set_crc32_options(False)
        return []
    return [entry.filename for entry in sorted(entries, key=lambda entry: -entry.file_size)]


def _compare(path: Path, name: str) -> None:
    """Reads a member of an archive to its end, where zipfile compares its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{name} is compressed")
            with archive.open(entry) as file:
                while file.read(_BLOCK):
                    pass
    except OSError:
        raise
    except Exception as e:  # a damaged archive may raise anything
        raise _DamagedError(first_line(e)) from e
