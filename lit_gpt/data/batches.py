"""Makes micro-batches of samples: the order in which a run sees them, and how they are laid end to end."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.answers import Answers
from lit_gpt.data.dealing import dealt
from lit_gpt.data.packing import NONE, Packing, Prefixes, packs, prefixes_of, sharing
from lit_gpt.data.store import IGNORE, Samples, computed_lengths
from lit_gpt.layers.attention import Documents
from lit_gpt.layers.dropout import token_keys

_Kind = TypeVar("_Kind", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """A micro-batch: samples laid end to end, without padding."""

    ids: Tensor
    """(T,) int64."""
    documents: Documents
    """Boundaries of the samples, one document each."""
    predicting: Tensor
    """(n_targets,) int64: the positions whose next token is a target. A sample's first token never is one: nothing
    predicts it."""
    targets: Tensor
    """(n_targets,) int64: the tokens to predict there."""

    @property
    def n_samples(self) -> int:
        return len(self.documents.whole)

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples, shared prefixes counted for each, and what follows the last one that is computed."""
        return sum(self.documents.whole)

    @property
    def n_computed(self) -> int:
        """Tokens that are computed (T): a shared prefix counts once, and nothing after a sample's last prediction."""
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        return len(self.targets)

    @property
    def n_terms(self) -> int:
        """Number of terms that the loss is a sum of: here, a target each."""
        return self.n_targets

    def to(self: _Kind, device: torch.device) -> _Kind:
        """Returns the batch on `device`; to a GPU it is copied asynchronously, from pinned memory."""
        moved = {
            name: (x.pin_memory() if device.type == "cuda" and not x.is_cuda else x).to(device, non_blocking=True)
            for name, x in vars(self).items()
            if isinstance(x, Tensor)
        }
        return replace(self, documents=self.documents.to(device), **moved)


@dataclass(frozen=True)
class AnswerBatch(Batch):
    """A micro-batch of rows of answers: each document is an answer with its prompt."""

    rows: tuple[int, ...]
    """The rows of the data set, in the order of their answers."""
    answers: tuple[int, ...]
    """Numbers of the answers in the data set, in their order here."""
    reference: Tensor
    """(n_answers,) fp32: log-probability of each answer under the reference."""
    desirable: Tensor
    """(n_rows,) bool: whether the first answer of each row is a desired one."""
    answer: Tensor
    """(n_targets,) int64: the answer that each target belongs to, counted in this batch."""

    @property
    def n_samples(self) -> int:
        return len(self.rows)

    @property
    def n_terms(self) -> int:
        """Number of terms that the loss is a sum of: here, a row each."""
        return len(self.rows)

    @property
    def n_answers(self) -> int:
        return len(self.answers)


class Idle(AnswerBatch):
    """A micro-batch of nothing, for a device that has none left while others compute one: one token without a target.

    Where each device keeps a part of every weight, all of them take part in each forward and backward pass.
    """

    @classmethod
    def make(cls) -> "Idle":
        """Returns one."""
        batch = collate([(np.zeros(1, dtype=np.int64), np.full(1, IGNORE))])
        return cls(
            batch.ids,
            batch.documents,
            batch.predicting,
            batch.targets,
            rows=(),
            answers=(),
            reference=torch.zeros(0),
            desirable=torch.ones(0, dtype=torch.bool),
            answer=batch.targets,
        )

    @property
    def n_samples(self) -> int:
        return 0

    @property
    def n_tokens(self) -> int:
        return 0


class Order:
    """The order in which a run sees the rows of a data set: for each epoch a permutation of its own.

    No list of the samples is kept, so a run resumes at any sample without going through the earlier ones.

    Args:
        n_rows: rows of the data set.
        n_samples: samples that the run sees, over all epochs.
    """

    def __init__(self, n_rows: int, n_samples: int, seed: int) -> None:
        self.n_rows, self.n_samples, self.seed = n_rows, n_samples, seed
        self.latest: tuple[int, np.ndarray] = (-1, np.empty(0))

    def rows(self, start: int, stop: int) -> list[int]:
        """Returns the rows of samples start .. stop - 1, fewer at the end of the run."""
        return self.indices(start, stop).tolist()

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Returns what `rows` does as an array, (n,) int64."""
        found = [np.zeros(0, dtype=np.int64)]
        stop = min(stop, self.n_samples)
        while start < stop:
            epoch, first = divmod(start, self.n_rows)
            found.append(self.permutation(epoch)[first : first + stop - start])
            start = (epoch + 1) * self.n_rows
        return np.concatenate(found)

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the order of the rows in an epoch, (n_rows,); epochs count from 0."""
        if self.latest[0] != epoch:
            self.latest = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n_rows))
        return self.latest[1]


def steps(
    samples: Samples,
    order: Order,
    batch_size: int,
    packing: Packing,
    seen: int = 0,
    mine: tuple[int, int] = (0, 1),
) -> Iterator[list[Batch]]:
    """Yields the micro-batches of each optimizer step, or those of one device.

    Which samples a step has depends on `order` and `batch_size` alone; a step may span two epochs. The step's loss is
    a sum over its samples, so which of them share a micro-batch changes memory and speed and nothing else.

    Args:
        seen: samples that earlier steps had; the steps resume after them.
        mine: number of the device, from 0, and how many there are.
    """
    i, n = mine
    for start in range(seen, order.n_samples, batch_size):
        yield micro_batches(samples, dealt(samples.lengths, order.rows(start, start + batch_size), n)[i], packing)


def micro_batches(samples: Samples, indices: Sequence[int] | np.ndarray, packing: Packing) -> list[Batch]:
    """Returns the samples at `indices`, packed into micro-batches."""
    prefixes = prefixes_of(samples, indices, packing)
    samples = samples.sharing(packing.share_up_to)
    return [batch_of(samples, g, prefixes) for g in packs(samples.computed, indices, packing.max_tokens, prefixes)]


def batch_of(samples: Samples, group: Sequence[int], prefixes: Prefixes = NONE) -> Batch:
    """Returns a micro-batch of a group of samples, with each shared prefix laid before the samples that share it."""
    if isinstance(samples, Answers):
        return _answer_batch(samples, group)
    shared = sharing(group, prefixes)
    rows = [i for members in shared.values() for i in members]
    others = [i for i in group if prefixes.get(i) not in shared]
    n_sharing = [(b.n_tokens, len(members)) for b, members in shared.items()]
    return collate([samples[i] for i in rows + others], n_sharing)


def _answer_batch(samples: Answers, group: Sequence[int]) -> AnswerBatch:
    """Returns a micro-batch of rows of answers, with the prompts that are shared within rows laid first."""
    rows = sorted(group, key=lambda i: not samples.n_shared[i])  # those that share come first
    n_sharing = [(n, len(samples.of(i))) for i in rows if (n := int(samples.n_shared[i]))]
    batch = collate([answer for i in rows for answer in samples.of(i)], n_sharing)
    piece = torch.searchsorted(batch.documents.offsets[1:].long(), batch.predicting, right=True)
    answers = tuple(a for i in rows for a in range(int(samples.firsts[i]), int(samples.firsts[i + 1])))
    return AnswerBatch(
        batch.ids,
        batch.documents,
        batch.predicting,
        batch.targets,
        rows=tuple(int(i) for i in rows),
        answers=answers,
        reference=torch.from_numpy(samples.reference_of(answers)),
        desirable=torch.from_numpy(samples.desirable_of(rows)),
        answer=piece - len(n_sharing),
    )


def collate(samples: Sequence[tuple[np.ndarray, np.ndarray]], n_sharing: Sequence[tuple[int, int]] = ()) -> Batch:
    """Returns the micro-batch of (ids, labels) of each sample: what comes before its last target, laid end to end.

    Args:
        n_sharing: (n, m) for each shared prefix: the first m samples share a prefix of n tokens, none of which is a
            target, and go on after it; the next pair is about the samples after those.
    """
    offsets = np.cumsum([0, *(len(ids) for ids, _ in samples)])
    computed = computed_lengths(np.concatenate([labels for _, labels in samples]), offsets)
    shared = [n_tokens + 1 for n_tokens, m in n_sharing for _ in range(m)]
    computed[: len(shared)] = np.maximum(computed[: len(shared)], shared)
    tails = tuple((np.diff(offsets) - computed).tolist())
    whole = [  # ids, and the label of the token after each
        (ids[:n], np.append(labels[1:], IGNORE)[:n]) for (ids, labels), n in zip(samples, computed, strict=True)
    ]
    pieces, firsts = [], []
    for n_tokens, m in n_sharing:
        at = len(pieces)
        firsts.append((whole[at][0][:n_tokens], np.full(n_tokens, IGNORE)))
        pieces += [(ids[n_tokens:], following[n_tokens:]) for ids, following in whole[at : at + m]]
    pieces = [*firsts, *pieces, *whole[len(pieces) :]]
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in pieces]).astype(np.int64))
    following = torch.from_numpy(np.concatenate([following for _, following in pieces]).astype(np.int64))
    documents = Documents.of(tuple(len(ids) for ids, _ in pieces), tuple(m for _, m in n_sharing), tails)
    starts = documents.offsets[:-1].numpy()
    owners = np.arange(len(pieces))
    for i, m in enumerate(documents.n_sharing):
        at = len(firsts) + sum(documents.n_sharing[:i])
        owners[at : at + m] = i
    keys = token_keys(ids.numpy(), documents.positions.numpy(), starts, owners)
    documents = replace(documents, keys=torch.from_numpy(keys))
    predicting = (following != IGNORE).nonzero()[:, 0]
    return Batch(ids, documents, predicting, following[predicting])


def ahead(order: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """Yields the same steps on `device`; for a GPU, a second thread makes each while the one before is computed.

    A CPU would gain nothing and lose a quarter of its speed: a second thread that uses torch makes OpenMP's waiting
    threads sleep between any two matmuls.
    """
    made = ([batch.to(device) for batch in batches] for batches in order)
    if device.type == "cpu":
        yield from made
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, made, None)
        while (batches := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield batches
