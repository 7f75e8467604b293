"""Samples into micro-batches: in what order they are seen, and how they are laid end to end."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.packed import Documents


@dataclass(frozen=True)
class Batch:
    """Samples end to end, without padding."""

    ids: Tensor
    """(T,) int64."""
    documents: Documents
    """A document for each sample."""
    predicting: Tensor
    """(n_targets,) int64: the positions whose next token carries loss. A sample's first token never does: nothing
    predicts it."""
    targets: Tensor
    """(n_targets,) int64: those tokens."""

    @property
    def n_samples(self) -> int:
        return len(self.documents.lengths)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`; a GPU copies it while it computes something else."""
        ids, predicting, targets = (
            (x.pin_memory() if device.type == "cuda" and not x.is_cuda else x).to(device, non_blocking=True)
            for x in (self.ids, self.predicting, self.targets)
        )
        return Batch(ids, self.documents.to(device), predicting, targets)


def steps(samples: Samples, n_samples: int, batch_size: int, max_tokens: int, seed: int) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step, until `n_samples` samples were seen.

    Every pass over the data is a permutation of its own; a step may span two of them. Which samples a step has
    depends on the seed and `batch_size` alone. The step's loss is a sum over its samples, so that which of them share
    a micro-batch changes memory and speed and nothing else.
    """
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(-(-n_samples // len(samples)))])[:n_samples]
    for start in range(0, n_samples, batch_size):
        chosen = order[start : start + batch_size]
        yield micro_batches(samples, chosen, max_tokens)


def micro_batches(samples: Samples, chosen: Sequence[int] | np.ndarray, max_tokens: int) -> list[Batch]:
    """The chosen samples in as few batches of at most `max_tokens` tokens as come out; a longer sample goes alone."""
    return [collate([samples[i] for i in pack]) for pack in packs(samples.lengths, chosen, max_tokens)]


def packs(lengths: np.ndarray, chosen: Sequence[int] | np.ndarray, max_tokens: int) -> list[list[int]]:
    """The chosen samples in groups: each, the longest first, goes to the fullest group that has room for it."""
    groups: list[list[int]] = []
    room: list[int] = []
    for i in sorted(chosen, key=lambda i: -lengths[i]):
        n = int(lengths[i])
        fitting = [g for g in range(len(groups)) if room[g] >= n]
        if not fitting:
            groups.append([])
            room.append(max_tokens)
            fitting = [-1]
        best = min(fitting, key=lambda g: room[g])
        groups[best].append(int(i))
        room[best] -= n
    return groups


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Lay (ids, labels) of each sample end to end."""
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in samples]).astype(np.int64))
    labels = np.concatenate([labels for _, labels in samples]).astype(np.int64)
    documents = Documents.of(tuple(len(ids) for ids, _ in samples))
    labels[documents.offsets[:-1].numpy()] = IGNORE
    targets = torch.from_numpy(labels)
    predicted = (targets != IGNORE).nonzero()[:, 0]
    return Batch(ids, documents, predicted - 1, targets[predicted])


def ahead(order: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """The same steps on `device`, each made by another thread while the one before is computed."""

    def make() -> list[Batch] | None:
        batches = next(order, None)
        return batches and [batch.to(device) for batch in batches]

    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(make)
        while batches := coming.result():
            coming = thread.submit(make)
            yield batches
