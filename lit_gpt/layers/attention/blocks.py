"""The layout of packed documents as blocks of queries, each with the tokens that it sees, in groups of similar size.

A block is a document, or a part of a long one: a query of the part sees the document's tokens before the part, and a
shared prefix if there is one. The blocks of a group are computed by one batch of matmuls. Each has slots for P tokens
before it, of which it uses the last ones, and for L tokens of its own, of which it uses the first ones:

    key slots     . . b b b a a a .     b: tokens before the block, a: its own, '.': padding
    query slots             a a a .     P = 5, L = 4

Shapes as in this package; n blocks of a group, S = P + L. A row is one head of one token, D channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from lit_gpt.layers.attention.documents import Documents
from lit_gpt.layers.attention.heads import Heads


@dataclass(frozen=True)
class _Limits:
    """What bounds blocks and groups on a device."""

    queries: int
    """Largest number of a block; fewer waste less on keys that a query does not see."""
    scores: int
    """Largest number of a group, of all heads, in memory at once; a single block may have more."""
    wasted: int
    """Scores of padding, of all heads, that take as long as the fixed cost of another group."""


_ON_CPU = _Limits(queries=256, scores=2**20, wasted=2**16)
_ON_GPU = _Limits(queries=2048, scores=2**27, wasted=2**24)


@dataclass(frozen=True)
class _Block:
    """Consecutive queries of a document."""

    own: range
    """Their tokens in the row."""
    before: tuple[range, ...]
    """Tokens before them that some of them see: of a shared prefix, of the document."""

    @property
    def n_before(self) -> int:
        return sum(len(tokens) for tokens in self.before)


@dataclass(frozen=True)
class Group:
    """A group of n blocks, which have M tokens without padding."""

    size: tuple[int, int, int]
    """n, L and S."""
    shared: tuple[tuple[slice, slice, tuple[range, ...]], ...]
    """Blocks with the same tokens before them: which blocks, which key slots, which tokens of the row."""
    queries: Tensor
    """Row of qkv with each query, (n * H * L,) int32, in the order (n, H, L)."""
    keys: Tensor
    """Row of qkv with each key and each value, (2 * n * G * S,) int32, in the order (2, n, G, S)."""
    outputs: Tensor
    """Row of the output of each query, (n * H * L,) int32, in the order (n, H, L)."""
    padding: Tensor
    """Indices of the queries that are padding, int64."""
    used: Tensor
    """Indices of the queries that are not, (M * H,) int32, in the order (M, H)."""
    own: Tensor
    """Indices of the keys and values of the blocks' own tokens, (M * 2 * G,) int32, in the order (M, 2, G)."""
    hidden: Tensor
    """Minus infinity where a query does not see a key, else 0, (n or 1, 1, 1, L, S)."""

    def to(self, device: torch.device) -> "Group":
        """Returns a copy on `device`."""
        return Group(self.size, self.shared, *(getattr(self, f.name).to(device) for f in fields(self)[2:]))


@dataclass(frozen=True)
class Layout:
    """The pieces of a row of documents (`Documents.pieces`): those computed in groups, and those computed alone."""

    groups: list[Group]
    alone: list[tuple[slice, slice | None]]
    """Slices of the row that the others span, and those of their prefixes."""
    order: Tensor | None
    """Index of each token in the tokens of all groups and then of the others, (T,) int32; None if it is its own."""


@lru_cache(maxsize=4)  # the layers of a micro-batch, which differ in window and heads
def layout(
    lengths: tuple[int, ...],
    n_sharing: tuple[int, ...],
    heads: Heads,
    most: float,
    kind: tuple[torch.dtype, torch.device],
) -> Layout:
    """Returns the layout of the documents with these `lengths` and `n_sharing`, as in `Documents`.

    Args:
        most: tokens of the longest piece that is computed in a group.
        kind: the dtype of `Group.hidden`, and the device of all tensors.
    """
    limits, H = _ON_CPU if kind[1].type == "cpu" else _ON_GPU, heads.sizes[0] // heads.head_size
    pieces = list(Documents.of(lengths, n_sharing).pieces())
    alone = [piece for piece in pieces if piece[0].stop - piece[0].start > most and not _cut(*piece, heads.window)]
    blocks = [b for p in pieces if p not in alone for b in _blocks(*p, window=heads.window, n_queries=limits.queries)]
    groups = list(_similar(blocks, limits.scores // H, limits.wasted // H))
    tokens = [t for group in groups for block in group for t in block.own]
    tokens += [t for own, _ in alone for t in range(own.start, own.stop)]
    in_order = tokens == sorted(tokens)
    return Layout(
        [_group(group, heads, kind[0]).to(kind[1]) for group in groups],
        alone,
        None if in_order else torch.tensor(tokens).argsort().int().to(kind[1]),
    )


def _cut(own: slice, prefix: slice | None, window: int) -> bool:
    """Returns whether the window hides tokens of the document."""
    return 0 < window < own.stop - own.start + (prefix.stop - prefix.start if prefix else 0)


def _blocks(own: slice, prefix: slice | None, window: int, n_queries: int) -> Iterator[_Block]:
    """Yields a piece in blocks of at most `n_queries` tokens, with the tokens before them that their window reaches."""
    n, tokens = own.stop - own.start, range(own.start, own.stop)
    shared = range(prefix.start, prefix.stop) if prefix else range(0)
    n_parts = -(-n // n_queries)
    for i in range(n_parts):
        start, end = (n * j // n_parts for j in (i, i + 1))
        reach = min(window - 1, len(shared) + start) if window else len(shared) + start
        before = shared[len(shared) - max(0, reach - start) :], tokens[max(0, start - reach) : start]
        yield _Block(tokens[start:end], tuple(part for part in before if part))


def _similar(blocks: list[_Block], most: int, wasted: int) -> Iterator[list[_Block]]:
    """Yields groups of blocks that together have at most `most` scores and `wasted` scores of padding, of one head."""
    group: list[_Block] = []
    L, P, used = 0, 0, 0
    for block in sorted(blocks, key=lambda block: (len(block.own), block.n_before)):
        n_own, n_before = len(block.own), block.n_before
        long, far, n_used = max(L, n_own), max(P, n_before), used + n_own * (n_own + n_before)
        n_scores = (len(group) + 1) * long * (long + far)
        if group and (n_scores > most or n_scores - n_used > wasted):
            yield sorted(group, key=lambda block: block.own.start)
            group, long, far, n_used = [], n_own, n_before, n_own * (n_own + n_before)
        group, L, P, used = [*group, block], long, far, n_used
    if group:
        yield sorted(group, key=lambda block: block.own.start)


def _group(blocks: list[_Block], heads: Heads, dtype: torch.dtype) -> Group:
    """Returns a group on the CPU."""
    n, L, P = len(blocks), max(len(b.own) for b in blocks), max(b.n_before for b in blocks)
    H, G, W = (size // heads.head_size for size in (*heads.sizes[:2], sum(heads.sizes)))
    seen = torch.empty(n, P + L, dtype=torch.int32)
    for slots, block in zip(seen, blocks, strict=True):
        slots[:P], slots[P:] = block.own[0], block.own[-1]
        known = [t for part in (*block.before, block.own) for t in part]
        slots[P - block.n_before : P + len(block.own)] = torch.tensor(known, dtype=torch.int32)
    n_before, n_own = (torch.tensor(x)[:, None] for x in zip(*((b.n_before, len(b.own)) for b in blocks), strict=True))
    head, kv_head = torch.arange(H)[:, None], torch.arange(H, W).view(2, 1, G, 1)
    query, key = torch.arange(n * H * L).view(n, H, L), torch.arange(2 * n * G * (P + L)).view(2, n, G, -1)
    is_used = torch.arange(L) < n_own
    return Group(
        (n, L, P + L),
        tuple(_shared(blocks, P)),
        queries=(seen[:, None, P:] * W + head).flatten().int(),
        keys=(seen[:, None] * W + kv_head).flatten().int(),
        outputs=(seen[:, None, P:] * H + head).flatten().int(),
        padding=query.transpose(1, 2)[~is_used].flatten(),
        used=query.transpose(1, 2)[is_used].flatten().int(),
        own=key[..., P:].permute(1, 3, 0, 2)[is_used].flatten().int(),
        hidden=_hidden(n_before, L, P, window=heads.window, dtype=dtype),
    )


def _shared(blocks: list[_Block], P: int) -> Iterator[tuple[slice, slice, tuple[range, ...]]]:
    """Yields `Group.shared`."""
    start = 0
    for before, alike in groupby(blocks, key=lambda block: block.before):
        end = start + len(list(alike))
        if before:
            yield slice(start, end), slice(P - blocks[start].n_before, P), before
        start = end


def _hidden(n_before: Tensor, L: int, P: int, window: int, dtype: torch.dtype) -> Tensor:
    """Returns `Group.hidden`, of one block if all have the same `n_before`, (n, 1)."""
    query, key = torch.arange(L)[:, None], torch.arange(-P, L)  # positions from the first query of the block
    unseen = query < key
    if window:
        unseen |= key <= query - window
    if (n_before < P).any():
        unseen = unseen | (key < -n_before[:, None])
    hidden = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -torch.inf)
    return hidden.view(-1, 1, 1, L, P + L)
