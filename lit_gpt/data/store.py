"""Reads and writes a prepared data set: memory-mapped token arrays, and meta.json, which says how they were made.

Each split (train, val) has <split>.ids.npy and <split>.labels.npy, all samples laid end to end (int32), and
<split>.offsets.npy: sample i spans offsets[i] .. offsets[i + 1] (int64).
"""

import hashlib
import json
import shutil
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lit_gpt.args.formats import read_record, with_format
from lit_gpt.data.arrays import IGNORE, open_arrays, pieces
from lit_gpt.errors import UserError, shown
from lit_gpt.files import replace_with, write_text
from lit_gpt.files.whole import naming_a_full_disk, sync, temporary_beside
from lit_gpt.records import require_types

META = "meta.json"
PREFERENCES, MARKS = "preferences", "desirable"
"""Key of meta.json that says what a data set of judged answers has: `pairs` or `labels`; name of the labels' array."""
_NEEDED = ("checkpoint_dir", "tokenizer", "prompt_style", "samples")
"""Keys that meta.json must have."""
_COUNTS = dict[str, int]
_KINDS = {
    "checkpoint_dir": str,
    "tokenizer": str,
    "prompt_style": str,
    "style_writes": str | None,
    "chat_template": str | None,
    "max_seq_length": int | None,
    "end_ids": list[int],
    "samples": _COUNTS,
    "tokens": _COUNTS,
    "rows": dict[str, dict[str, int | bool | _COUNTS | None] | None],
    "command": list[str] | None,
    PREFERENCES: str,
}
"""Types of the values of meta.json that are read again."""
_KINDS_OF_ROWS = {"read": int, "kept": int, "dropped": _COUNTS | None, "cut": _COUNTS | None}
"""Types of what became of a split's rows."""


@dataclass(frozen=True)
class Samples:
    """The samples of one split. `labels[t]` is `ids[t]` where position t is a target, IGNORE elsewhere."""

    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    largest: int | None = None
    """The largest id or label; None if nobody has looked."""
    shares_within: ClassVar[bool] = False
    """Whether a sample has several documents, which may share their beginning with each other and with no others."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and labels of sample i, (T,) each."""
        span = slice(self.offsets[i], self.offsets[i + 1])
        return self.ids[span], self.labels[span]

    @property
    def max_id(self) -> int:
        """The largest id or label; -1 without samples."""
        if self.largest is None:
            return int(max((part.max() for part in (self.ids, self.labels) if len(part)), default=-1))
        return self.largest

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, (n,)."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that attention sees as a whole; 0 without samples."""
        return int(self.lengths.max(initial=0))

    @cached_property
    def computed(self) -> np.ndarray:
        """Tokens that a forward pass over each sample alone computes, (n,)."""
        return computed_lengths(self.labels, self.offsets)

    def sharing(self, share_up_to: int) -> "Samples":
        """Returns the same samples, which share what they have in common within themselves: here they have nothing.

        Args:
            share_up_to: most tokens of what may share its beginning.
        """
        return self

    def digest(self) -> str:
        """Returns a hash that tells these samples from others, of the lengths and a few thousand tokens and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets).tobytes())
        for tokens in (self.ids, self.labels):
            digest.update(np.ascontiguousarray(tokens[:: max(1, len(tokens) // 4096)]).tobytes())
        return digest.hexdigest()[:16]

    def contents(self) -> str:
        """Returns a hash of all lengths, tokens and labels."""
        digest = hashlib.sha256()
        for part in (self.offsets, self.ids, self.labels):
            crc = 0
            for _, values in pieces(part):
                crc = zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data, crc)
            digest.update(f"{part.dtype} {len(part)} {crc:08x}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def n_targets(self) -> int:
        """Number of targets, the positions that carry loss."""
        return sum(int((labels != IGNORE).sum()) for _, labels in pieces(self.labels))


def computed_lengths(labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns how many tokens of each sample a forward pass computes, (n,): those before its last target.

    No token after these predicts a target, the last target least of all. Of a sample without targets it is one token.

    Args:
        labels: those of all samples, end to end; of each sample, only as many are read as follow its last target.
        offsets: sample i spans offsets[i] .. offsets[i + 1].
    """
    firsts, places = np.asarray(offsets[:-1]), np.diff(offsets) - 1
    left = np.flatnonzero(places > 0)
    while len(left):
        left = left[np.asarray(labels[firsts[left] + places[left]]) == IGNORE]
        places[left] -= 1
        left = left[places[left] > 0]
    return np.maximum(places, 1)


def stack(samples: Sequence[tuple[list[int], list[int]]]) -> Samples:
    """Returns samples in memory, made of (ids, labels) of each."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in samples)], dtype=np.int64)
    ids = np.array([t for ids, _ in samples for t in ids], dtype=np.int32)
    labels = np.array([t for _, labels in samples for t in labels], dtype=np.int32)
    return Samples(ids, labels, offsets)


class Writer:
    """A writer of the arrays of one split that holds no more than a batch of samples in memory."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.offsets = array("q", [0])
        self.marks = array("b")
        """The third part of each sample that has one: 1 marks a desired answer."""
        self.n_targets = 0
        self.files = [open(folder / f"{split}.{part}.npy", "wb") for part in ("ids", "labels")]  # noqa: SIM115
        for file in self.files:
            np.lib.format.write_array_header_1_0(file, _header(0))

    def add(self, samples: Sequence[tuple[Any, ...]]) -> None:
        """Appends samples, (ids, labels) each, or (ids, labels, whether it is a desired answer)."""
        for ids, *rest in samples:
            self.offsets.append(self.offsets[-1] + len(ids))
            self.marks.extend(map(int, rest[1:]))
        for file, part in zip(self.files, (0, 1), strict=True):
            numbers = array("i")
            for sample in samples:
                numbers.fromlist(sample[part])
            self.n_targets += int((np.frombuffer(numbers, np.intc) != IGNORE).sum()) if part else 0
            file.write(numbers)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        """Writes the final number of tokens into the headers, and the offsets into a file of their own."""
        for file in self.files:
            end = file.tell()
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, _header(self.offsets[-1]))  # as long as the first one
            assert error[0] or file.tell() + 4 * self.offsets[-1] == end
            file.close()
        _save_array(self.folder / f"{self.split}.offsets.npy", np.array(self.offsets, dtype=np.int64))
        if self.marks:
            _save_array(self.folder / f"{self.split}.{MARKS}.npy", np.array(self.marks, dtype=np.int8))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample so far, (n,)."""
        return np.diff(np.array(self.offsets, dtype=np.int64))


def _header(n: int) -> dict[str, Any]:
    """Returns numpy's header of an array of n tokens; it is padded, so a larger n overwrites it in place."""
    return {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False, "shape": (n,)}


def require_room(folder: Path, overwrite: bool = True) -> None:
    """Checks that a prepared data set may be written to `folder`.

    Raises:
        UserError: a file stands where the folder or one of its parents would be, or the folder holds a prepared data
            set and `overwrite` is not set.
    """
    if (first := next(p for p in (folder, *folder.parents) if p.exists())) and not first.is_dir():
        raise UserError(f"--destination_path {folder}: {first} is a file; pass another folder")
    if (folder / META).exists() and not overwrite:
        raise UserError(
            f"{folder} holds a prepared data set; pass another --destination_path, or --overwrite true to replace it"
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files then replace the prepared data set of `folder`.

    If the block raises, the old arrays stay. The other files of `folder` stay in any case.

    Raises:
        UserError: the disk is full, or a file stands where the folder would be.
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
    """Writes a prepared data set; meta.json comes last, and a folder without it does not count as prepared."""
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


def load(folder: Path, judged: bool | None = False) -> tuple[Samples, Samples, dict[str, Any]]:
    """Loads (train, val, meta) of a prepared data set, after looking once at every token and label.

    Args:
        judged: whether its samples are to be judged answers, of which some are bad; None takes both.

    Raises:
        UserError: the folder holds no prepared data set, a damaged one, or one of the other kind.
    """
    if not (folder / META).is_file():
        raise UserError(
            f"{folder} is not a prepared data set (no {META}); make one with "
            f"python scripts/prepare_alpaca.py --destination_path {folder} --checkpoint_dir <checkpoint>"
        )
    meta = read_record(folder / META, "prepare it again")
    require_types(str(folder / META), meta, _KINDS, "prepare it again")
    for split, rows in meta.get("rows", {}).items():
        require_types(f"{folder / META}: rows of {shown(split)}", rows or {}, _KINDS_OF_ROWS, "prepare it again")
    if missing := [key for key in _NEEDED if key not in meta]:
        raise UserError(f"{folder / META} has no {' and no '.join(missing)}; prepare the data again")
    if judged is not None and judged != (PREFERENCES in meta):
        raise UserError(
            f"{folder} holds preferences, and half of their answers are not to be imitated; train on them with "
            "finetune/preference.py"
            if PREFERENCES in meta
            else f"{folder} holds no preferences; make some with python scripts/prepare_preferences.py"
        )
    opened = (open_arrays(folder, split, meta["samples"].get(split)) for split in ("train", "val"))
    train, val = (Samples(*arrays, largest=largest) for arrays, largest in opened)
    return train, val, meta
