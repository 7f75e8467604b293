"""A tree of texts whose keys and values are kept, so that what begins alike is computed once.

Each node owns the positions of its own tokens only: what comes before them belongs to the nodes above. Scores of tokens
that somebody asked for are kept, too, so that a text whose prompt is scored again is not computed again.
"""

import heapq
from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import count

import numpy as np

from lit_gpt.generation.batching.pool import Pool, Span
from lit_gpt.generation.request import Scored

_MOST_TOP = 8
"""Most likely tokens that are kept of a score, so that scores take about a kilobyte a token at most."""


class Node:
    """Some tokens of a text, where in the pool their keys and values are, and their scores or None."""

    def __init__(self, parent: "Node | None", ids: np.ndarray, start: int, scores: list[Scored | None]) -> None:
        self.parent, self.ids, self.start, self.scores = parent, ids, start, scores
        self.children: dict[int, Node] = {}
        self.used = 0


class Prefixes:
    """The kept texts of one engine; the ones that were not used for longest go first when memory is wanted."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.roots: dict[Hashable, Node] = {}
        self.n_kept = 0
        """Positions of the pool that are kept."""
        self._clock = count(1)
        self._leaves: list[tuple[int, int, Node]] = []
        """Heap of (when used, a number, node): entries of nodes that were used again, grew or went are passed over."""
        self._numbers = count()

    def match(self, key: Hashable, ids: np.ndarray) -> list[tuple[Node, int]]:
        """Returns the nodes that `ids` begins with, from the root on, each with the number of its tokens that match."""
        path: list[tuple[Node, int]] = []
        node, at = self.roots.get(key), 0
        while node is not None and at < len(ids):
            child = node.children.get(int(ids[at]))
            if child is None:
                break
            n = common(child.ids, ids[at:])
            path.append((child, n))
            at += n
            node = child if n == len(child.ids) else None
        return path

    def touch(self, path: list[tuple[Node, int]]) -> None:
        """Marks the nodes as used now."""
        now = next(self._clock)
        for node, _ in path:
            node.used = now
            self._watch(node)

    def insert(self, key: Hashable, ids: np.ndarray, start: int, scores: Sequence[Scored | None] = ()) -> None:
        """Keeps a text whose keys and values lie from `start` on; what the tree had of it already is freed.

        Args:
            scores: those of its tokens, None where there is none; those of the last ones may lack.
        """
        scores = [*map(_short, scores), *[None] * (len(ids) - len(scores))]
        node, at, now = self.roots.setdefault(key, Node(None, ids[:0], 0, [])), 0, next(self._clock)
        while at < len(ids) and (child := node.children.get(int(ids[at]))) is not None:
            n = common(child.ids, ids[at:])
            if n < len(child.ids) and at + n < len(ids):
                child = self._split(child, n)
            child.used = now
            child.scores[:n] = map(_fuller, child.scores[:n], scores[at : at + n])
            self._watch(child)
            node, at = child, at + n
        self.pool.give(start, at)
        if at < len(ids):
            new = Node(node, ids[at:].copy(), start + at, scores[at:])
            node.children[int(ids[at])] = new
            self.n_kept += len(new.ids)
            new.used = now
            self._watch(new)

    def evict(self, besides: Collection[Node] = ()) -> bool:
        """Frees the leaf that was not used for longest; returns False if there is none.

        Args:
            besides: nodes that stay.
        """
        stay, freed = [], False
        while self._leaves and not freed:
            entry = heapq.heappop(self._leaves)
            used, _, node = entry
            if node.parent is None or node.children or node.used != used:
                continue
            if node in besides:
                stay.append(entry)
                continue
            self.forget(node)
            self.pool.give(node.start, len(node.ids))
            freed = True
        for entry in stay:
            heapq.heappush(self._leaves, entry)
        return freed

    def forget(self, node: Node) -> None:
        """Takes a leaf out of the tree; its positions remain owned, by who asks."""
        parent = node.parent
        assert parent is not None and not node.children
        del parent.children[int(node.ids[0])]
        node.parent = None
        self.n_kept -= len(node.ids)
        self._watch(parent)

    def nodes(self) -> Iterator[Node]:
        """Yields all nodes that own positions."""
        todo = [child for root in self.roots.values() for child in root.children.values()]
        while todo:
            node = todo.pop()
            todo += node.children.values()
            yield node

    def _split(self, node: Node, n: int) -> Node:
        """Splits a node after its first `n` tokens; returns the upper part."""
        upper = Node(node.parent, node.ids[:n], node.start, node.scores[:n])
        assert node.parent is not None
        node.parent.children[int(node.ids[0])] = upper
        node.parent, node.ids, node.start, node.scores = upper, node.ids[n:], node.start + n, node.scores[n:]
        upper.children[int(node.ids[0])] = node
        upper.used = node.used
        return upper

    def _watch(self, node: Node) -> None:
        """Enters a node that may go into the heap."""
        if node.parent is not None and not node.children:
            heapq.heappush(self._leaves, (node.used, next(self._numbers), node))
            if len(self._leaves) > 64 + 4 * self.n_kept:
                self._leaves = [e for e in self._leaves if e[2].parent is not None and e[2].used == e[0]]
                heapq.heapify(self._leaves)


def _short(score: Scored | None) -> Scored | None:
    """Returns a score without the most likely tokens that are too many to be kept."""
    return score if score is None or len(score.top) <= _MOST_TOP else score._replace(top=score.top[:_MOST_TOP])


def _fuller(a: Scored | None, b: Scored | None) -> Scored | None:
    """Returns the one of two scores of a token that has more of the most likely tokens."""
    return b if a is None or (b is not None and len(b.top) > len(a.top)) else a


def spans(path: list[tuple[Node, int]]) -> list[Span]:
    """Returns the positions of the pool that a path of `Prefixes.match` has."""
    return [(node.start, n) for node, n in path]


def scores_of(path: list[tuple[Node, int]]) -> list[Scored | None]:
    """Returns the scores of the tokens of a path of `Prefixes.match`."""
    return [score for node, n in path for score in node.scores[:n]]


def cut(path: list[tuple[Node, int]], n: int) -> list[tuple[Node, int]]:
    """Returns the part of a path of `Prefixes.match` that has the first `n` of its tokens."""
    found = []
    for node, length in path:
        if n <= 0:
            break
        found.append((node, min(length, n)))
        n -= length
    return found


def common(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the number of tokens that `a` and `b` begin with in common."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n
