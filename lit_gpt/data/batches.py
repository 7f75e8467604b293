"""Samples into micro-batches: in what order they are seen, and how they are laid side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.store import IGNORE, Samples


@dataclass(frozen=True)
class Batch:
    """Samples side by side, padded on the right: ids with 0, labels with IGNORE."""

    ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64, aligned with `ids`."""
    n_tokens: int
    """Real tokens, without padding."""
    n_targets: int
    """Positions that carry loss: those with a label, except a sample's first token, which nothing predicts."""


def steps(samples: Samples, n_samples: int, batch_size: int, micro_batch_size: int, seed: int) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step, until `n_samples` samples were seen.

    Every pass over the data is a permutation of its own; a step may span two of them. Which samples a step has
    depends on the seed and `batch_size` alone. Within a step, samples of like length share a micro-batch, the longest
    first: the step's loss is a sum over its samples, so that their order in it changes padding and nothing else.
    """
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(-(-n_samples // len(samples)))])[:n_samples]
    for start in range(0, n_samples, batch_size):
        chosen = order[start : start + batch_size]
        yield micro_batches(samples, chosen, micro_batch_size)


def micro_batches(samples: Samples, chosen: Sequence[int] | np.ndarray, size: int) -> list[Batch]:
    """The chosen samples in batches of `size`, longest first."""
    by_length = sorted(chosen, key=lambda i: -samples.lengths[i])
    return [collate([samples[i] for i in by_length[n : n + size]]) for n in range(0, len(by_length), size)]


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Lay (ids, labels) of each sample side by side."""
    lengths = [len(ids) for ids, _ in samples]
    ids = torch.zeros(len(samples), max(lengths), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    for row, (sample_ids, sample_labels) in enumerate(samples):
        ids[row, : lengths[row]] = torch.from_numpy(sample_ids.astype(np.int64))
        labels[row, : lengths[row]] = torch.from_numpy(sample_labels.astype(np.int64))
    return Batch(ids, labels, sum(lengths), int((labels[:, 1:] != IGNORE).sum()))
