"""Rows of prepared data sets, picked into a new one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data import store
from lit_gpt.errors import UserError

_BATCH = 1000
_Picks = Sequence[tuple[store.Samples, np.ndarray]]
"""Samples and the indices of those that are taken, in order; an index may come more than once."""


def write(folder: Path, splits: Mapping[str, _Picks], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write a prepared data set of the picked rows to `folder`; returns its meta.json.

    Args:
        meta: what it says; the numbers of samples and tokens are counted here.

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
    ids, labels = samples[i]
    return ids.tolist(), labels.tolist()
