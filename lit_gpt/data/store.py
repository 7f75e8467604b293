"""A prepared data set on disk: memory-mapped token arrays and meta.json, which says how they were made.

For each split (train, val): <split>.ids.npy and <split>.labels.npy, all samples one after the other (int32), and
<split>.offsets.npy, where sample i spans offsets[i] .. offsets[i + 1] (int64).
"""

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.args.formats import with_format, without_format
from lit_gpt.errors import UserError
from lit_gpt.files import replace_with, write_text
from lit_gpt.files.whole import naming_a_full_disk, sync, temporary_beside

META = "meta.json"
_NEEDED = ("checkpoint_dir", "tokenizer", "prompt_style", "samples")
"""What meta.json says at least."""
IGNORE = -100
"""Label of positions that carry no loss; what torch's cross_entropy ignores by default."""


@dataclass(frozen=True)
class Samples:
    """The samples of one split. `labels[t]` is `ids[t]` where position t is a target, IGNORE elsewhere."""

    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels of sample i, (T,) each."""
        span = slice(self.offsets[i], self.offsets[i + 1])
        return self.ids[span], self.labels[span]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, (n,)."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """What tells these samples from others: by their lengths, and by a few thousand of their tokens and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets).tobytes())
        for tokens in (self.ids, self.labels):
            digest.update(np.ascontiguousarray(tokens[:: max(1, len(tokens) // 4096)]).tobytes())
        return digest.hexdigest()[:16]

    @property
    def n_targets(self) -> int:
        """Positions of all samples that carry loss."""
        return int((self.labels != IGNORE).sum())


def stack(samples: Sequence[tuple[list[int], list[int]]]) -> Samples:
    """Samples in memory, from (ids, labels) of each."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in samples)], dtype=np.int64)
    ids = np.array([t for ids, _ in samples for t in ids], dtype=np.int32)
    labels = np.array([t for _, labels in samples for t in labels], dtype=np.int32)
    return Samples(ids, labels, offsets)


class Writer:
    """The arrays of one split, written sample by sample, so that no more than a batch of them is in memory."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.offsets = array("q", [0])
        self.n_targets = 0
        self.files = [open(folder / f"{split}.{part}.npy", "wb") for part in ("ids", "labels")]  # noqa: SIM115
        for file in self.files:
            np.lib.format.write_array_header_1_0(file, _header(0))

    def add(self, samples: Sequence[tuple[list[int], list[int]]]) -> None:
        """Append (ids, labels) of each."""
        for ids, _ in samples:
            self.offsets.append(self.offsets[-1] + len(ids))
        for file, part in zip(self.files, (0, 1), strict=True):
            values = np.array(list(chain.from_iterable(sample[part] for sample in samples)), dtype=np.int32)
            self.n_targets += int((values != IGNORE).sum()) if part else 0
            file.write(values.data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        """Say in the files how long they have become."""
        for file in self.files:
            end = file.tell()
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, _header(self.offsets[-1]))  # as long as the first one
            assert error[0] or file.tell() + 4 * self.offsets[-1] == end
            file.close()
        _save_array(self.folder / f"{self.split}.offsets.npy", np.array(self.offsets, dtype=np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample so far, (n,)."""
        return np.diff(np.array(self.offsets, dtype=np.int64))


def _header(n: int) -> dict[str, Any]:
    """What numpy writes before n tokens; it leaves room for n to grow."""
    return {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (n,)}


def require_room(folder: Path, overwrite: bool = True) -> None:
    """See that a prepared data set may be written to `folder`.

    Raises:
        UserError: a file is where the folder, or one that it is in, would be; it holds a prepared data set, and
            `overwrite` is not set.
    """
    if (first := next(p for p in (folder, *folder.parents) if p.exists())) and not first.is_dir():
        raise UserError(f"--destination_path {folder}: {first} is a file; pass another folder")
    if (folder / META).exists() and not overwrite:
        raise UserError(
            f"{folder} holds a prepared data set; pass another --destination_path, or --overwrite true to replace it"
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder for the arrays and meta.json of a prepared data set, which then take the place of an old one.

    The other files of `folder` stay. If the block fails, so do the old arrays.

    Raises:
        UserError: the disk is full, or there is a file in the folder's place.
    """
    require_room(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder / "new")
    try:
        with naming_a_full_disk(folder):
            temporary.mkdir()
            yield temporary
            for path in temporary.iterdir():
                sync(path)
        (folder / META).unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == META):
            path.replace(folder / path.name)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()


def save(folder: Path, splits: dict[str, Samples], meta: dict[str, Any]) -> None:
    """Write a prepared data set. Without its meta.json, which comes last, a folder does not count as prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    for split, samples in splits.items():
        for part in ("ids", "labels", "offsets"):
            array = getattr(samples, part)
            replace_with(folder / f"{split}.{part}.npy", lambda path, array=array: _save_array(path, array))
    save_meta(folder, meta)


def save_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Writes meta.json."""
    write_text(folder / META, json.dumps(with_format(META, meta), indent=2) + "\n")


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # given a path, numpy would append its own suffix
        np.save(file, array)


def _load_array(path: Path) -> np.ndarray:
    """The array of a file, which stays on the disk until it is read. Raises: UserError if it is gone or damaged."""
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError as e:
        raise UserError(f"{path} is gone; prepare it again") from e
    except (ValueError, EOFError) as e:
        raise UserError(f"{path} is damaged ({str(e).splitlines()[0]}); prepare it again") from e


def load(folder: Path) -> tuple[Samples, Samples, dict[str, Any]]:
    """(train, val, meta) of a prepared data set.

    Raises:
        UserError: not prepared, or damaged.
    """
    if not (folder / META).is_file():
        raise UserError(
            f"{folder} is not a prepared data set (no {META}); make one with "
            f"python scripts/prepare_alpaca.py --destination_path {folder} --checkpoint_dir <checkpoint>"
        )
    try:
        meta = without_format(folder / META, json.loads((folder / META).read_text(encoding="utf-8")))
    except UserError:
        raise
    except ValueError as e:
        raise UserError(f"{folder / META} is damaged ({e}); prepare it again") from e
    if missing := [key for key in _NEEDED if not isinstance(meta, dict) or key not in meta]:
        raise UserError(f"{folder / META} has no {' and no '.join(missing)}; prepare the data again")
    splits = [
        Samples(*(_load_array(folder / f"{s}.{part}.npy") for part in ("ids", "labels", "offsets")))
        for s in ("train", "val")
    ]
    for split, samples in zip(("train", "val"), splits, strict=True):
        if not len(samples.ids) == len(samples.labels) == samples.offsets[-1] or len(samples) != meta["samples"].get(
            split
        ):
            raise UserError(f"{folder}: the arrays of {split} do not belong together; prepare it again")
    return splits[0], splits[1], meta
