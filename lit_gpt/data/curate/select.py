"""Writes a new prepared data set of rows selected from others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data import store
from lit_gpt.errors import UserError

_BATCH = 1000
"""Number of rows that are in memory at once."""
_Picks = Sequence[tuple[store.Samples, np.ndarray]]
"""Pairs of samples and the indices to take from them, in order; an index may be repeated."""


def write(folder: Path, splits: Mapping[str, _Picks], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a prepared data set of the selected rows to `folder` and returns the content of its meta.json.

    Args:
        splits: split -> the rows to take.
        meta: what meta.json says besides the numbers of samples and tokens, which are counted here.

    Raises:
        UserError: a split would be empty, or the disk is full.
    """
    for name, picks in splits.items():
        if not sum(len(rows) for _, rows in picks):
            raise UserError(f"no row of {name} is left; nothing was written to {folder}")
    counts: dict[str, dict[str, int]] = {key: {} for key in ("samples", "tokens", "targets", "longest")}
    with store.replacing(folder) as temporary:
        for name, picks in splits.items():
            with store.Writer(temporary, name) as writer:
                for samples, rows in picks:
                    for start in range(0, len(rows), _BATCH):
                        writer.add([_as_lists(samples, i) for i in rows[start : start + _BATCH]])
            lengths = writer.lengths
            values = (len(lengths), int(lengths.sum()), writer.n_targets, int(lengths.max()))
            for key, value in zip(counts, values, strict=True):
                counts[key][name] = value
        written = {**meta, **counts}
        store.save_meta(temporary, written)
    return written


def _as_lists(samples: store.Samples, i: int) -> tuple[list[int], list[int]]:
    """Returns ids and labels of sample i as lists."""
    ids, labels = samples[i]
    return ids.tolist(), labels.tolist()
