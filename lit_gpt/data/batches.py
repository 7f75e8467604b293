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


class Order:
    """Which row each sample of a run is, without a list of them: any place of a run is there at once.

    Every pass over the rows is a permutation of its own.

    Args:
        n_rows: of the data set.
        n_samples: of the run.
    """

    def __init__(self, n_rows: int, n_samples: int, seed: int) -> None:
        self.n_rows, self.n_samples, self.seed = n_rows, n_samples, seed
        self.latest: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return self.n_samples

    def rows(self, start: int, stop: int) -> list[int]:
        """Of samples start .. stop - 1, as far as the run has them."""
        return [int(self.permutation(i // self.n_rows)[i % self.n_rows]) for i in range(start, min(stop, len(self)))]

    def permutation(self, epoch: int) -> np.ndarray:
        """(n_rows,) of a pass over the data, counted from 0."""
        if self.latest[0] != epoch:
            self.latest = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n_rows))
        return self.latest[1]


def steps(samples: Samples, order: Order, batch_size: int, max_tokens: int, first: int = 1) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step, `first` and those after it.

    Which samples a step has depends on `order` and `batch_size` alone; a step may span two passes over the data. The
    step's loss is a sum over its samples, so that which of them share a micro-batch changes memory and speed and
    nothing else.
    """
    for start in range((first - 1) * batch_size, len(order), batch_size):
        yield micro_batches(samples, order.rows(start, start + batch_size), max_tokens)


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


def fullest(lengths: np.ndarray, max_tokens: int, batch_size: int) -> list[int]:
    """Samples whose micro-batch is as large as they come: the longest, and as many more as a step has and fit in."""
    chosen: list[int] = []
    room = max_tokens
    for i in (-lengths).argsort(kind="stable"):
        if not chosen or lengths[i] <= room:
            chosen.append(int(i))
            room -= int(lengths[i])
        if room <= 0 or len(chosen) == batch_size:
            break
    return chosen


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
    """The same steps on `device`; for a GPU each is made by another thread while the one before is computed.

    A CPU has nothing to gain there and a quarter of its speed to lose: a second thread that uses torch makes OpenMP's
    waiting threads sleep between any two products.
    """
    made = ([batch.to(device) for batch in batches] for batches in order)
    if device.type == "cpu":
        yield from made
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, made, None)
        while batches := coming.result():
            coming = thread.submit(next, made, None)
            yield batches
