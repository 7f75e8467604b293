"""A prepared data set on disk: memory-mapped token arrays and meta.json, which says how they were made.

For each split (train, val): <split>.ids.npy and <split>.labels.npy, all samples one after the other (int32), and
<split>.offsets.npy, where sample i spans offsets[i] .. offsets[i + 1] (int64).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.files import replace_with, write_text

META = "meta.json"
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


def save(folder: Path, splits: dict[str, Samples], meta: dict[str, Any]) -> None:
    """Write a prepared data set. Without its meta.json, which comes last, a folder does not count as prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    for split, samples in splits.items():
        for part in ("ids", "labels", "offsets"):
            array = getattr(samples, part)
            replace_with(folder / f"{split}.{part}.npy", lambda path, array=array: save_array(path, array))
    write_text(folder / META, json.dumps(meta, indent=2) + "\n")


def save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # given a path, numpy would append its own suffix
        np.save(file, array)


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
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        splits = [
            Samples(*(np.load(folder / f"{s}.{part}.npy", mmap_mode="r") for part in ("ids", "labels", "offsets")))
            for s in ("train", "val")
        ]
    except (ValueError, FileNotFoundError) as e:
        raise UserError(f"{folder} is damaged ({str(e).splitlines()[0]}); prepare it again") from e
    for split, samples in zip(("train", "val"), splits, strict=True):
        if not len(samples.ids) == len(samples.labels) == samples.offsets[-1] or len(samples) != meta["samples"][split]:
            raise UserError(f"{folder}: the arrays of {split} do not belong together; prepare it again")
    return splits[0], splits[1], meta


def check_fit(meta: dict[str, Any], folder: Path, fingerprint: str, prompt_style: str | None) -> None:
    """See that a prepared data set suits a run.

    Args:
        fingerprint: of the tokenizer of the checkpoint to be trained.
        prompt_style: the one that the run says; None takes the data's.

    Raises:
        UserError: another tokenizer or another prompt style.
    """
    if meta["tokenizer"] != fingerprint:
        raise UserError(
            f"{folder} was prepared with the tokenizer of {meta['checkpoint_dir']}, which is another one than the "
            "checkpoint's; prepare it again with this --checkpoint_dir"
        )
    if prompt_style is not None and prompt_style != meta["prompt_style"]:
        raise UserError(
            f"{folder} was prepared with the prompt style {meta['prompt_style']!r}, not {prompt_style!r}; "
            f"prepare it again with --prompt_style {prompt_style}, or leave the flag out"
        )
