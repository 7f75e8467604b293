"""Where documents lie in a row of tokens, and which of them go on from a prefix that they share."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SharedPrefixes:
    """What goes on from shared prefixes, as attention of variable lengths reads it: which queries see which keys."""

    queries: Tensor
    """(g + 3,) int32 offsets in the row: the prefixes themselves, what goes on from each of the g, and the rest."""
    keys: Tensor
    """(g + 3,) int32 offsets of the keys that those see besides their own: none, each prefix, and none."""
    going_on: Tensor
    """(T, 1, 1) bool: the tokens that go on from a prefix."""
    n_keys: int
    """Tokens at the start of the row that hold all prefixes."""
    most: tuple[int, int]
    """Queries between two of the offsets, and keys of a prefix, at most."""

    @classmethod
    def empty(cls, T: int, n: int, longest: int, device: torch.device) -> "SharedPrefixes":
        """Room for n prefixes of at most `longest` tokens and a quarter of the row, in which there are none yet."""
        queries = torch.zeros(n + 3, dtype=torch.int32, device=device)
        queries[-1] = T
        going_on = torch.zeros(T, 1, 1, dtype=torch.bool, device=device)
        n_keys = max(1, T // 4)
        return cls(queries, torch.zeros_like(queries), going_on, n_keys, (T, min(longest, n_keys)))

    def fits(self, room: "SharedPrefixes") -> bool:
        """Whether `room` could take these by `copy`."""
        most = all(here <= there for here, there in zip(self.most, room.most, strict=True))
        return most and self.n_keys <= room.n_keys and len(self.queries) <= len(room.queries)

    def copy(self, other: "SharedPrefixes | None") -> None:
        """Take the place of others that `fits`, of a row that goes on where theirs ends, or of none."""
        T = len(self.going_on)
        self.queries.zero_()
        self.keys.zero_()
        self.going_on.zero_()
        if other is not None:
            n = len(other.queries) - 1  # but for the rest
            self.queries[:n].copy_(other.queries[:n])
            self.queries[n:] = other.queries[n - 1]
            self.keys[:n].copy_(other.keys[:n])
            self.keys[n:] = other.keys[n]
            self.going_on[: len(other.going_on)].copy_(other.going_on)
        self.queries[-1] = T


@dataclass(frozen=True)
class Documents:
    """Where documents lie in a row of T tokens.

    A row is made of pieces, end to end. Without shared prefixes, each is a document. Otherwise the prefixes come
    first, each of them once, then what goes on from the first of them, from the second, and so on, and last the
    documents that share nothing.
    """

    lengths: tuple[int, ...]
    """Of the pieces."""
    offsets: Tensor
    """(n + 1,) int32: piece i spans offsets[i] .. offsets[i + 1]."""
    positions: Tensor
    """(T,) int64, of each token in its document."""
    n_sharing: tuple[int, ...] = ()
    """Documents that go on from each prefix."""
    shared_prefixes: SharedPrefixes | None = None

    @classmethod
    def of(cls, lengths: tuple[int, ...], n_sharing: tuple[int, ...] = ()) -> "Documents":
        n = torch.tensor(lengths)
        offsets = F.pad(n.cumsum(0), (1, 0))
        before = torch.tensor(_shared_by_piece(lengths, n_sharing))
        positions = torch.arange(int(offsets[-1])) - (offsets[:-1] - before).repeat_interleave(n)
        shared_prefixes = _shared_prefixes_of(lengths, n_sharing) if n_sharing else None
        return cls(lengths, offsets.int(), positions, n_sharing, shared_prefixes)

    def to(self, device: torch.device) -> "Documents":
        move = {"device": device, "non_blocking": True}
        c = self.shared_prefixes
        if c is not None:
            c = SharedPrefixes(
                c.queries.to(**move), c.keys.to(**move), c.going_on.to(**move), n_keys=c.n_keys, most=c.most
            )
        return Documents(
            self.lengths,
            self.offsets.to(**move),
            self.positions.to(**move),
            n_sharing=self.n_sharing,
            shared_prefixes=c,
        )

    @property
    def whole(self) -> tuple[int, ...]:
        """Tokens of each document, its prefix included."""
        before = _shared_by_piece(self.lengths, self.n_sharing)
        return tuple(n + p for n, p in zip(self.lengths, before, strict=True))[len(self.n_sharing) :]

    def pieces(self) -> Iterator[tuple[slice, slice | None]]:
        """The tokens of each piece, and those of the prefix that it goes on from."""
        spans, start = [], 0
        for n in self.lengths:
            spans.append(slice(start, start := start + n))
        prefixes = [None] * len(self.n_sharing)
        for i, n in enumerate(self.n_sharing):
            prefixes += [spans[i]] * n
        prefixes += [None] * (len(spans) - len(prefixes))
        yield from zip(spans, prefixes, strict=True)


def _shared_by_piece(lengths: tuple[int, ...], n_sharing: tuple[int, ...]) -> list[int]:
    """Tokens of the prefix that each piece goes on from."""
    shared = [0] * len(n_sharing)
    for n, length in zip(n_sharing, lengths, strict=False):
        shared += [length] * n
    return shared + [0] * (len(lengths) - len(shared))


def _shared_prefixes_of(lengths: tuple[int, ...], n_sharing: tuple[int, ...]) -> SharedPrefixes:
    """See there; `lengths` and `n_sharing` as in `Documents`."""
    prefixes, rest = lengths[: len(n_sharing)], list(lengths[len(n_sharing) :])
    going_on = []
    for n in n_sharing:
        going_on.append(sum(rest[:n]))
        rest = rest[n:]
    start, end = sum(prefixes), sum(lengths)
    queries = torch.tensor([0, start, *going_on, sum(rest)]).cumsum(0)
    keys = torch.tensor([0, 0, *prefixes, 0]).cumsum(0)
    token = torch.arange(end)
    between = (token >= start) & (token < start + sum(going_on))
    return SharedPrefixes(
        queries.int(), keys.int(), between[:, None, None], n_keys=start, most=(int(queries.diff().max()), max(prefixes))
    )
