"""Samples into micro-batches: in what order they are seen, and how they are laid end to end."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.packing import NONE, Packing, Prefixes, packs, prefixes_of, sharing
from lit_gpt.data.store import IGNORE, Samples
from lit_gpt.layers.attention import Documents


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
        return len(self.documents.whole)

    @property
    def n_tokens(self) -> int:
        """Of all samples."""
        return sum(self.documents.whole)

    @property
    def n_computed(self) -> int:
        """T: a prefix that samples share is computed once."""
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


def steps(samples: Samples, order: Order, batch_size: int, packing: Packing, seen: int = 0) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step to come.

    Which samples a step has depends on `order` and `batch_size` alone; a step may span two passes over the data. The
    step's loss is a sum over its samples, so that which of them share a micro-batch changes memory and speed and
    nothing else.

    Args:
        seen: samples of the order that earlier steps had.
    """
    for start in range(seen, len(order), batch_size):
        yield micro_batches(samples, order.rows(start, start + batch_size), packing)


def micro_batches(samples: Samples, chosen: Sequence[int] | np.ndarray, packing: Packing) -> list[Batch]:
    """The chosen samples in as few batches as come out."""
    prefixes = prefixes_of(samples, chosen, packing)
    return [batch_of(samples, g, prefixes) for g in packs(samples.lengths, chosen, packing.max_tokens, prefixes)]


def batch_of(samples: Samples, group: Sequence[int], prefixes: Prefixes = NONE) -> Batch:
    """A group of samples, what some begin with in front of them."""
    shared = sharing(group, prefixes)
    rows = [i for those in shared.values() for i in those]
    others = [i for i in group if prefixes.get(i) not in shared]
    n_sharing = [(b.n_tokens, len(those)) for b, those in shared.items()]
    return collate([samples[i] for i in rows + others], n_sharing)


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray]], n_sharing: Sequence[tuple[int, int]] = ()) -> Batch:
    """Lay (ids, labels) of each sample end to end.

    Args:
        n_sharing: (n, m) for each prefix: the first m samples begin with the same n tokens, none of which carries
            loss; the next pair is about the samples after those.
    """
    pieces, firsts = [], []
    for n_tokens, m in n_sharing:
        at = len(pieces)
        firsts.append((samples[at][0][:n_tokens], samples[at][1][:n_tokens]))
        pieces += [(ids[n_tokens:], labels[n_tokens:]) for ids, labels in samples[at : at + m]]
    pieces = [*firsts, *pieces, *samples[len(pieces) :]]
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in pieces]).astype(np.int64))
    labels = np.concatenate([labels for _, labels in pieces]).astype(np.int64)
    documents = Documents.of(tuple(len(ids) for ids, _ in pieces), tuple(m for _, m in n_sharing))
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
