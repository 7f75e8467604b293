"""Who is due: which requests have a place in the KV cache, and how many tokens each of them feeds next."""

from collections import deque
from itertools import islice
from typing import NamedTuple

import numpy as np

from lit_gpt.generation.batching.pool import Pool
from lit_gpt.generation.batching.prefixes import Node, Prefixes, common, cut, scores_of, spans
from lit_gpt.generation.batching.rows import Row

_WORTH_WAITING = 16
"""Fewest tokens that a request waits for, if another row is about to compute them."""
_SHARE_OF_OLDEST = 4
"""Part of a chunk, as 1 / n, that goes to the prompt that came first, however many shorter ones there are."""
_AHEAD = 4
"""Requests in the queue that are looked at in a step, for each row that there can be."""


class Due(NamedTuple):
    """What a row feeds in a step."""

    row: Row
    n: int
    """Number of its tokens, from `row.n` on."""


class Scheduler:
    """The queue, the rows that run, and their extents of the pool."""

    def __init__(self, pool: Pool, max_rows: int, chunk: int) -> None:
        assert min(max_rows, chunk) > 0
        self.pool, self.chunk, self.max_rows = pool, chunk, max_rows
        self.waiting: deque[Row] = deque()
        self.n_hits = 0
        self.clear()

    def clear(self) -> None:
        """Forgets all rows and all that is kept."""
        self.pool.clear()
        self.prefixes = Prefixes(self.pool)
        self.waiting.clear()
        self.running: list[Row] = []
        self.slots = list(range(self.max_rows))[::-1]
        self.most_running = self.max_rows
        """Fewer than all while there is no memory for more."""

    def admit(self) -> list[Row]:
        """Gives requests their places in the cache, first come first served; returns those that begin.

        A request that begins like a row that is being read waits until that part is there; others may pass it.
        """
        begun: list[Row] = []
        for row in list(islice(self.waiting, _AHEAD * self.max_rows)):
            if (not self.slots and row.slot is None) or len(self.running) >= self.most_running:
                break
            if row.waits_for and row.waits_for[0].start is not None and row.waits_for[0].n < row.waits_for[1]:
                continue
            ids = np.array(row.ids[: row.sharable], dtype=np.int32)
            path = self.prefixes.match(row.key, ids)
            scores = scores_of(path)
            n_kept = row.usable(scores)
            other, n_same = self._most_alike(row, ids)
            n_shared = 0 if other is None else row.will_share(other, n_same)
            row.waits_for = None
            if other is not None and min(n_shared, other.n) > n_kept:
                scores = other.known()[:n_same]
                n_kept, path = row.usable(scores), []
            if other is not None and n_shared >= n_kept + _WORTH_WAITING:
                row.waits_for = other, n_shared
                continue
            path = cut(path, n_kept)
            if not self._place(row, path, other=None if path else other, n=n_kept):
                break
            row.take(scores[: row.n + 1])
            begun.append(row)
        for row in begun:
            self.waiting.remove(row)
        return begun

    def _most_alike(self, row: Row, ids: np.ndarray) -> tuple[Row | None, int]:
        """Returns the running row from which most can be had, and how many tokens it has in common with `ids`."""
        found: tuple[Row | None, int] = (None, 0)
        most = 0
        for other in self.running:
            n = common(other.prompt[: other.n_plain], ids) if other.key == row.key else 0
            if (shared := row.will_share(other, n)) > most:
                found, most = (other, n), shared
        return found

    def _place(self, row: Row, path: list[tuple[Node, int]], other: Row | None, n: int) -> bool:
        """Gives a request an extent, with a copy of what is there of its text; returns False if none is free.

        Args:
            path: nodes of the tree that the text begins with; empty if nothing is kept of it.
            other: a running row that has its first `n` tokens; None if the tree has them.
        """
        if self.pool.n_free + self.prefixes.n_kept < row.room:  # rows that run must leave first: keep what is kept
            return False
        self.prefixes.touch(path)
        nodes = {node for node, _ in path}
        start = self.pool.take(row.room)
        while start is None and self.prefixes.evict(besides=nodes):
            start = self.pool.take(row.room)
        if start is None and self.pool.n_free >= row.room:
            self._pack()
            start = self.pool.take(row.room)
        if start is None and path:  # not even beside what it begins with: that is computed again
            while self.prefixes.evict():
                pass
            return self._place(row, [], None, 0)
        if start is None:
            return False
        self.pool.copy(spans(path) if other is None or other.start is None else [(other.start, n)], to=start)
        row.start, row.n = start, n
        row.n_cached = n if row.n_new == 0 else row.n_cached
        self.n_hits += n
        if row.slot is None:
            row.slot = self.slots.pop()
        self.running.append(row)
        return True

    def _pack(self) -> None:
        """Moves all extents together, so that what is free is in one piece."""
        owners = [*self.prefixes.nodes(), *self.running]
        owners.sort(key=lambda o: o.start)
        sizes = [len(o.ids) if isinstance(o, Node) else o.room for o in owners]
        self.pool.pack([(o.start, n) for o, n in zip(owners, sizes, strict=True)], sum(sizes))
        at = 0
        for owner, n in zip(owners, sizes, strict=True):
            owner.start = at
            at += n

    def due(self) -> list[Due]:
        """Returns what each row feeds next: a drawn token, or a part of its prompt.

        Prompts are read whole, the shortest first: a pass takes less time for few rows than for shares of many. The
        oldest one gets a part of the chunk in any case, so that shorter ones that keep coming do not hold it up.
        """
        drawn = [Due(row, row.due) for row in self.running if not row.reads]
        reading = sorted((row for row in self.running if row.reads), key=lambda row: row.due)
        if not reading:
            return drawn
        oldest = min(reading, key=lambda row: row.ticket)
        shares = {oldest.ticket: min(oldest.due, max(1, self.chunk // _SHARE_OF_OLDEST))}
        left = self.chunk - shares[oldest.ticket]
        for row in reading:
            n = min(row.due - shares.get(row.ticket, 0), left)
            shares[row.ticket] = shares.get(row.ticket, 0) + n
            left -= n
        return drawn + [Due(row, n) for row in reading if (n := shares[row.ticket])]

    def leave(self, row: Row, pause: bool = False) -> None:
        """Takes a row out, and keeps what it computed for texts that begin alike.

        Args:
            pause: it goes on later: it becomes the first of the queue.
        """
        if row.start is None:
            if row in self.waiting:
                self.waiting.remove(row)
        else:
            self.running.remove(row)
            n = min(row.n, row.n_plain) if row.branches else row.n
            self.pool.give(row.start + n, row.room - n)
            self.prefixes.insert(row.key, np.array(row.ids[:n], dtype=np.int32), row.start, row.known()[:n])
            row.start, row.n = None, 0
        self.most_running = max(1, len(self.running)) if pause else self.max_rows
        if pause:
            self.waiting.appendleft(row)
        elif row.slot is not None:
            self.slots.append(row.slot)
            row.slot = None
