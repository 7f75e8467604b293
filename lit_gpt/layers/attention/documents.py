"""The layout of documents packed into one row of tokens, and of the prefixes that they share."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SharedPrefixes:
    """Arguments of the attention of documents to their shared prefixes, for a kernel with variable lengths.

    For g prefixes the row is divided into g + 2 segments of queries, and each of them sees one range of prefix keys. In
    the example of `Documents`, a row of 14 tokens with one prefix of 4, these are

        segment                      queries    keys
        the prefix itself            0 .. 4     none
        the rest of its documents    4 .. 9     0 .. 4
        documents without a prefix   9 .. 14    none

    and therefore queries = [0, 4, 9, 14], keys = [0, 0, 4, 4], n_keys = 4, and max_lengths = (5, 4).
    """

    queries: Tensor
    """Offsets of the segments in the row, (g + 3,) int32: all prefixes, what follows each of them, and the others."""
    keys: Tensor
    """Offsets of the prefix keys that each segment sees, (g + 3,) int32: none, each prefix in turn, none."""
    after_prefix: Tensor
    """True for the tokens of documents after a shared prefix, (T, 1, 1) bool."""
    n_keys: int
    """Number of tokens at the start of the row that hold all prefixes."""
    max_lengths: tuple[int, int]
    """Length of the longest segment of queries, and of the longest prefix."""

    @classmethod
    def empty(cls, T: int, n: int, longest: int, device: torch.device) -> "SharedPrefixes":
        """Returns buffers for a row of T tokens, filled later by `copy`, that hold no prefix yet.

        They have room for n prefixes of at most `longest` tokens each and a quarter of the row in all.
        """
        queries = torch.zeros(n + 3, dtype=torch.int32, device=device)
        queries[-1] = T
        after_prefix = torch.zeros(T, 1, 1, dtype=torch.bool, device=device)
        n_keys = max(1, T // 4)
        return cls(queries, torch.zeros_like(queries), after_prefix, n_keys, (T, min(longest, n_keys)))

    def fits(self, room: "SharedPrefixes") -> bool:
        """Returns whether the buffers of `room` are large enough for `room.copy(self)`."""
        lengths = zip(self.max_lengths, room.max_lengths, strict=True)
        return (
            all(here <= there for here, there in lengths)
            and self.n_keys <= room.n_keys
            and len(self.queries) <= len(room.queries)
        )

    def copy(self, other: "SharedPrefixes | None") -> None:
        """Overwrites the buffers with `other`, which fits them and whose row may be shorter; None means no prefixes."""
        T = len(self.after_prefix)
        self.queries.zero_()
        self.keys.zero_()
        self.after_prefix.zero_()
        if other is not None:
            n = len(other.queries) - 1  # all offsets but the last, the end of the row
            self.queries[:n].copy_(other.queries[:n])
            self.queries[n:] = other.queries[n - 1]
            self.keys[:n].copy_(other.keys[:n])
            self.keys[n:] = other.keys[n]
            self.after_prefix[: len(other.after_prefix)].copy_(other.after_prefix)
        self.queries[-1] = T


@dataclass(frozen=True)
class Documents:
    """The layout of documents packed into a row of T tokens.

    A row consists of pieces laid end to end. Without shared prefixes, each piece is a document. With shared prefixes,
    each prefix is stored once. The pieces are then, in this order: all prefixes; the rest of each document that begins
    with the first prefix, then with the second, and so on; and the documents without a shared prefix.

    Example: documents of 6 and 7 tokens share their first 4, and one of 5 tokens shares nothing. They take 14 tokens
    instead of 18, and are described by `Documents.of(lengths=(4, 2, 3, 5), n_sharing=(2,))`:

        piece       prefix     rest of 1st   rest of 2nd   3rd document
        offsets     0          4             6             9               14
        positions   0 1 2 3    4 5           4 5 6         0 1 2 3 4
        sees        itself     prefix,       prefix,       itself
                               itself        itself

    The lengths of the documents, `whole`, are (6, 7, 5).
    """

    lengths: tuple[int, ...]
    """Number of tokens of each piece."""
    offsets: Tensor
    """Offsets of the n pieces in the row, (n + 1,) int32: piece i spans offsets[i] .. offsets[i + 1]."""
    positions: Tensor
    """Position of each token in its document, (T,) int64."""
    n_sharing: tuple[int, ...] = ()
    """Number of documents that begin with each prefix; empty without shared prefixes."""
    shared_prefixes: SharedPrefixes | None = None
    keys: Tensor | None = None
    """Key of each token, (T,) int32, by which dropout draws (`lit_gpt.layers.dropout`); None tells it by its place."""
    tails: tuple[int, ...] = ()
    """Number of tokens at the end of each document that are not in the row, as nobody asks for what they predict;
    empty if all are."""

    @classmethod
    def of(cls, lengths: tuple[int, ...], n_sharing: tuple[int, ...] = (), tails: tuple[int, ...] = ()) -> "Documents":
        """Returns the layout, on the CPU, of pieces of these lengths."""
        n = torch.tensor(lengths)
        offsets = F.pad(n.cumsum(0), (1, 0))
        before = torch.tensor(_shared_by_piece(lengths, n_sharing))
        positions = torch.arange(int(offsets[-1])) - (offsets[:-1] - before).repeat_interleave(n)
        shared_prefixes = _shared_prefixes_of(lengths, n_sharing) if n_sharing else None
        return cls(lengths, offsets.int(), positions, n_sharing, shared_prefixes, tails=tails)

    def to(self, device: torch.device) -> "Documents":
        """Returns a copy on `device`; the transfer does not block."""
        move = {"device": device, "non_blocking": True}
        c = self.shared_prefixes
        if c is not None:
            c = SharedPrefixes(
                c.queries.to(**move),
                c.keys.to(**move),
                c.after_prefix.to(**move),
                n_keys=c.n_keys,
                max_lengths=c.max_lengths,
            )
        return Documents(
            self.lengths,
            self.offsets.to(**move),
            self.positions.to(**move),
            n_sharing=self.n_sharing,
            shared_prefixes=c,
            keys=None if self.keys is None else self.keys.to(**move),
            tails=self.tails,
        )

    @property
    def computed(self) -> tuple[int, ...]:
        """Number of tokens of each document that are in the row, its prefix included."""
        before = _shared_by_piece(self.lengths, self.n_sharing)
        return tuple(n + p for n, p in zip(self.lengths, before, strict=True))[len(self.n_sharing) :]

    @property
    def whole(self) -> tuple[int, ...]:
        """Number of tokens of each document, its prefix and its tail included."""
        found = self.computed
        return tuple(map(sum, zip(found, self.tails, strict=True))) if self.tails else found

    @property
    def ends(self) -> tuple[int, ...]:
        """Number of tokens of the text that each piece belongs to: of a prefix itself, or of the whole document."""
        return (*self.lengths[: len(self.n_sharing)], *self.whole)

    def pieces(self) -> Iterator[tuple[slice, slice | None]]:
        """Yields the slice of the row that each piece spans, and that of its prefix, None if it has none."""
        spans, start = [], 0
        for n in self.lengths:
            spans.append(slice(start, start := start + n))
        prefixes = [None] * len(self.n_sharing)
        for i, n in enumerate(self.n_sharing):
            prefixes += [spans[i]] * n
        prefixes += [None] * (len(spans) - len(prefixes))
        yield from zip(spans, prefixes, strict=True)


def _shared_by_piece(lengths: tuple[int, ...], n_sharing: tuple[int, ...]) -> list[int]:
    """Returns the number of tokens of the prefix before each piece, 0 for none."""
    shared = [0] * len(n_sharing)
    for n, length in zip(n_sharing, lengths, strict=False):
        shared += [length] * n
    return shared + [0] * (len(lengths) - len(shared))


def _shared_prefixes_of(lengths: tuple[int, ...], n_sharing: tuple[int, ...]) -> SharedPrefixes:
    """Returns the `SharedPrefixes` of a row whose `lengths` and `n_sharing` are those of `Documents`."""
    prefixes, rest = lengths[: len(n_sharing)], list(lengths[len(n_sharing) :])
    following = []
    for n in n_sharing:
        following.append(sum(rest[:n]))
        rest = rest[n:]
    start, end = sum(prefixes), sum(lengths)
    queries = torch.tensor([0, start, *following, sum(rest)]).cumsum(0)
    keys = torch.tensor([0, 0, *prefixes, 0]).cumsum(0)
    token = torch.arange(end)
    after_prefix = ((token >= start) & (token < start + sum(following)))[:, None, None]
    max_lengths = (int(queries.diff().max()), max(prefixes))
    return SharedPrefixes(queries.int(), keys.int(), after_prefix, n_keys=start, max_lengths=max_lengths)
