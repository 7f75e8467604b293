"""The tokens of a forward pass: what each row feeds, where that goes in the pool, and what it sees.

Letters: N tokens of all rows, T tokens of a row, S positions that they see, n rotated channels of a head.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lit_gpt.generation.batching.branches import Branches

_Kind = TypeVar("_Kind")


class Shared(NamedTuple):
    """What some rows begin with alike: each has a copy, and attention may read this one for all of them."""

    start: int
    """Where it begins in the pool."""
    n: int
    """Number of its tokens."""


class Piece(NamedTuple):
    """Tokens that a row feeds."""

    ids: Sequence[int]
    position: int
    """Position of the first one in its text."""
    start: int
    """Where the row's extent begins in the pool."""
    is_long: bool = False
    """Whether LongRoPE's frequencies of long texts apply."""
    run: str | None = None
    """Name of the run whose updates apply."""
    owner: int = -1
    """Ticket of the row."""
    shared: Shared | None = None
    """What it shares with its neighbours that have the same; it feeds one token then."""
    branches: Branches | None = None
    """The tree that tokens are in, if they are not one text; `position` is an index among those that it feeds."""


class Batch:
    """The tokens of a forward pass, where they go in the pool, and which positions they see."""

    def __init__(
        self, pieces: Sequence[Piece], device: torch.device, in_kernels: bool, wanted: Sequence[int] | None = None
    ) -> None:
        self.pieces, self.lengths = pieces, [len(piece.ids) for piece in pieces]
        positions = [p for piece in pieces for p in _positions(piece)]
        places = [
            p
            for piece in pieces
            for p in range(piece.start + piece.position, piece.start + piece.position + len(piece.ids))
        ]
        ids = [i for piece in pieces for i in piece.ids]
        is_long = [piece.is_long for piece in pieces for _ in piece.ids]
        self.ids, self.positions, self.places = torch.tensor([ids, positions, places], device=device)
        self.is_long = torch.tensor(is_long, device=device)
        self.wanted = None if wanted is None or len(wanted) == len(ids) else torch.tensor(wanted, device=device)
        """Indices of the tokens whose hidden states are wanted after the last layer; None are all."""
        plain = all(piece.branches is None for piece in pieces)
        self.in_kernels = in_kernels and len(ids) == len(pieces) and plain
        """Whether attention is computed for all rows at once: each has one token."""
        self.starts = self.places - self.positions
        self._masks: dict[tuple[int, bool], list[Tensor | None]] = {}
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows = [[len(p.ids), p.position, p.start] for p in pieces]
        kinds = [(len(p.ids) == 1 and p.branches is None, p.shared or Shared(0, 0)) for p in pieces]
        self.parts = [[first, end, *shared, int(single)] for (single, shared), first, end in _neighbours(kinds)]
        """Neighbours, in order: [first piece, end, where in the pool what they share begins, its length or 0, whether
        they feed one token each, of a text and not of a tree]."""

    def turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cos and sin (N, n) as a compiled block takes them, (N, 1, n): half of sin with its sign changed."""
        if id(sin) not in self._turns:
            half = sin.size(-1) // 2
            self._turns[id(sin)] = cos.unsqueeze(1), torch.cat((-sin[:, :half], sin[:, half:]), -1).unsqueeze(1)
        return self._turns[id(sin)]

    def masks(self, window: int, always: bool = False) -> list[Tensor | None]:
        """Returns for each piece what is added to its scores, (T, S) fp32: minus infinity where a query does not see a
        key. S are the positions up to its last token, from the first one on that any query sees. None where one token
        sees them all, or where a piece is all there is of a text so far and sees no window of it.

        Args:
            always: the latter has a mask as well, as its attention is of a kind that knows no other way.
        """
        if (window, always) not in self._masks:
            self._masks[window, always] = [self._mask(piece, window, always) for piece in self.pieces]
        return self._masks[window, always]

    def _mask(self, piece: Piece, window: int, always: bool) -> Tensor | None:
        """Returns what `masks` does for a piece."""
        T, end, device = len(piece.ids), piece.position + len(piece.ids), self.ids.device
        if piece.branches is not None:
            return piece.branches.mask(piece.position, end, window, device)[1]
        if T == 1 or (piece.position == 0 and not always and not 0 < window < T):
            return None
        first = max(0, piece.position + 1 - window) if window else 0
        queries = torch.arange(piece.position, end, device=device).unsqueeze(1)
        distance = queries - torch.arange(first, end, device=device)
        hidden = distance < 0 if not window else (distance < 0) | (distance >= window)
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)


def _positions(piece: Piece) -> Sequence[int]:
    """Returns the position in its text of each token that a row feeds."""
    stop = piece.position + len(piece.ids)
    if piece.branches is None:
        return range(piece.position, stop)
    return piece.branches.positions[piece.position : stop].tolist()


def _neighbours(values: Sequence[_Kind]) -> Iterator[tuple[_Kind, int, int]]:
    """Yields each value that neighbours have in common, with the index of the first one and that after the last."""
    at = 0
    for value, group in groupby(values):
        begin, at = at, at + len(list(group))
        yield value, begin, at
