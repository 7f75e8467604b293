"""Opens the arrays of a prepared data set, and checks them against each other before anything indexes with them."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.errors import UserError

IGNORE = -100
"""Label of positions without loss; torch's cross_entropy ignores it by default."""
_CHUNK = 2**20
"""Number of values of a mapped array that are looked at together."""


class _Arrays(NamedTuple):
    """The arrays of one split, memory-mapped."""

    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


def open_arrays(folder: Path, split: str, n_samples: int | None) -> tuple[_Arrays, int]:
    """Returns the arrays of a split, after looking once at each value, and the largest id or label in them.

    Args:
        n_samples: samples that the split is to have.

    Raises:
        UserError: an array is missing, damaged, or does not go with the others.
    """
    arrays = _Arrays(*(_opened(folder / f"{split}.{part}.npy") for part in _Arrays._fields))
    _require_offsets(folder / f"{split}.offsets.npy", arrays.offsets)
    if not len(arrays.ids) == len(arrays.labels) == arrays.offsets[-1] or len(arrays.offsets) - 1 != n_samples:
        raise UserError(f"{folder}: the arrays of {split} do not belong together; prepare it again")
    largest = -1
    for part in ("ids", "labels"):
        lowest = IGNORE if part == "labels" else 0
        array, path = getattr(arrays, part), folder / f"{split}.{part}.npy"
        for start, values in pieces(array):
            least = int(values.min())
            if least < 0 and ((values < 0) & (values != lowest)).any():
                i = int(((values < 0) & (values != lowest)).argmax())
                what = "no id" if part == "ids" else f"neither an id nor {IGNORE}"
                raise UserError(f"{path} is damaged: value {start + i:,} is {int(values[i])}, {what}; prepare it again")
            largest = max(largest, int(values.max()))
    return arrays, largest


def pieces(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of the first, values) of _CHUNK values at a time, and holds no others of an array in a file."""
    for start in range(0, len(array), _CHUNK):
        yield start, array[start : start + _CHUNK]
        let_go(array)


def let_go(*arrays: np.ndarray) -> None:
    """Gives back what memory holds of arrays in files: a process that has gone through a file would keep all of it.

    What is indexed again comes from the system's cache. Arrays that are no files, and parts of any, stay as they are.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _opened(path: Path) -> np.ndarray:
    """Returns the array in a file, memory-mapped; raises UserError if it is missing, damaged or no list of integers."""
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError as e:
        raise UserError(f"{path} is gone; prepare it again") from e
    except OSError:
        raise
    except Exception as e:  # a damaged header may raise anything
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise UserError(f"{path} is damaged ({reason}); prepare it again") from e
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind != "i" or not array.dtype.isnative:
        what = f"an array {list(array.shape)} of {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} is damaged: it holds {what}, and no list of integers; prepare it again")
    return array


def _require_offsets(path: Path, offsets: np.ndarray) -> None:
    """Checks that offsets begin with 0 and grow; raises UserError if they do not."""
    if not len(offsets) or offsets[0] != 0:
        raise UserError(f"{path} is damaged: the first sample does not begin at 0; prepare it again")
    for start in range(0, len(offsets) - 1, _CHUNK):
        piece = offsets[start : start + _CHUNK + 1]
        falls = piece[1:] <= piece[:-1]  # no difference, which may not fit
        if falls.any():
            i = int(falls.argmax())
            spans = f"from {int(piece[i]):,} to {int(piece[i + 1]):,}"
            raise UserError(f"{path} is damaged: sample {start + i:,} spans {spans}; prepare it again")
