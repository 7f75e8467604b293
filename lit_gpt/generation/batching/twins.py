"""One row for requests that only score and feed the same tokens, such as the answers A, B, C and D of a question."""

from typing import Any
from weakref import WeakValueDictionary

from lit_gpt.generation.batching.rows import Row


class Twins:
    """Joins requests to a row that waits and feeds what they would feed; that row leads them."""

    def __init__(self) -> None:
        self._leaders = WeakValueDictionary[Any, Row]()

    def join(self, row: Row) -> bool:
        """Makes a new request the twin of another one, if there is one; returns whether there is."""
        if row.most_new or row.branches:
            return False
        key = row.key, row.prompt[:-1].tobytes()
        leader = self._leaders.get(key)
        if leader is None or leader.ended or leader.start is not None:
            self._leaders[key] = row
            return False
        leader.twins.append(row)
        leader.scores_from = min(leader.scores_from, row.scores_from)
        row.leader = leader
        return True

    def leave(self, row: Row) -> Row | None:
        """Takes a row that ends away from the others; returns the one that leads them from now on, if that is new."""
        row.ended = True
        if row.leader is not None and row in row.leader.twins:
            row.leader.twins.remove(row)
        if not row.twins:
            return None
        heir, *others = row.twins
        row.twins, heir.twins, heir.leader = [], others, None
        for other in others:
            other.leader = heir
        heir.scores_from = min(one.scored_from for one in (heir, *others))
        return heir
