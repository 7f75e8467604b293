"""One forward pass for the rows that are due: scores of their prompts, and the tokens that they draw."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch

from lit_gpt.generation.batching.alike import Alike
from lit_gpt.generation.batching.batch import Piece, Shared
from lit_gpt.generation.batching.forward import ExtentModel
from lit_gpt.generation.batching.rows import Row
from lit_gpt.generation.batching.scheduler import Due
from lit_gpt.generation.batching.scored import Wanted, score, score_in_parts
from lit_gpt.generation.batching.speculation import Speculation
from lit_gpt.generation.request import Scored
from lit_gpt.generation.sampling.sampler import Sampler
from lit_gpt.resources import is_out_of_memory


@contextmanager
def in_pass(autocast: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enters the context of forward passes, in which new tensors of numbers are in fp32 all the same.

    Fabric's context for a model in 16 bits makes them 16-bit ones: masks that queries in fp32 refuse, and penalties
    that are rounded. TorchScript runs as it is written: its optimizations take 0.2 s before the first token, and a step
    is no faster with them.
    """
    with autocast(), torch.jit.optimized_execution(False):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class _Got(NamedTuple):
    """What a row got from a pass."""

    row: Row
    n: int
    """How many tokens that were known it fed."""
    scores: list[Scored]
    """Scores of its prompt's tokens that follow those."""
    tokens: list[Scored]
    """Tokens that it drew: guesses that were right, and the one after them; none while it reads its prompt."""


class _Tried(NamedTuple):
    """What came of a pass that may fail."""

    got: list[_Got]
    failed: list[tuple[Row, Exception]]
    """Rows that make it fail by themselves."""
    paused: list[Row]
    """Rows for which there was no memory, the youngest first."""


class Passes:
    """Forward passes of one model, with what draws from its logits."""

    def __init__(self, model: ExtentModel, sampler: Sampler, speculation: Speculation | None) -> None:
        self.model, self.sampler, self.speculation = model, sampler, speculation
        self.alike = Alike()

    def tried(self, due: list[Due]) -> _Tried:
        """Returns what each row got, where one that makes the pass fail is left out, and so are the youngest while
        there is no memory for all."""
        try:
            return _Tried(self.run(due), [], [])
        except Exception as e:
            error = e.with_traceback(None)  # which has the tensors of the pass
        if len(due) == 1:
            return _Tried([], [(due[0].row, error)], [])
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            youngest = max((d.row for d in due), key=lambda row: row.ticket)
            found = self.tried([d for d in due if d.row is not youngest])
            return found._replace(paused=[youngest, *found.paused])
        parts = zip(*(self.tried([d]) for d in due), strict=True)
        return _Tried(*(list(chain.from_iterable(part)) for part in parts))

    def run(self, due: list[Due]) -> list[_Got]:
        """Returns what each row got; rows change only by what the sampler counts as drawn."""
        guesses = self._guesses(due)
        shared = self._shared(due, guesses)
        order = _order(due, shared)
        due, guesses = [due[i] for i in order], [guesses[i] for i in order]
        pieces = [
            Piece(
                [*row.ids[row.n : row.n + n], *guess],
                row.n,
                start=row.start or 0,
                is_long=row.is_long,
                run=row.request.run,
                shared=shared.get(row.ticket),
                owner=row.ticket,
                branches=row.branches,
            )
            for (row, n), guess in zip(due, guesses, strict=True)
        ]
        at, wanted, wanted_by = 0, [], []
        drawing, places = [], []  # (due, number of guesses before), index of a hidden state
        for i, (row, n) in enumerate(due):
            for p in range(max(row.n, row.scores_from - 1), min(row.n + n, row.scores_until)):
                targets = row.targets(p)
                wanted += [Wanted(at + p - row.n, target, row.n_top, row.request.run) for target in targets]
                wanted_by += [i] * len(targets)
            if row.most_new and row.n + n == len(row.ids):
                drawing += [(i, k) for k in range(len(guesses[i]) + 1)]
                places += range(at + n - 1, at + n + len(guesses[i]))
            at += n + len(guesses[i])
        kept = sorted({*places, *(w.place for w in wanted)})
        hidden = self.model.hidden(pieces, kept or [0])
        index = {place: i for i, place in enumerate(kept)}
        found: list[list[Scored]] = [[] for _ in due]
        logits_of = self.model.logits
        scores = score_in_parts(
            lambda some, runs: logits_of(hidden[[index[p] for p in some]], runs),
            wanted,
            self.model.model.config.padded_vocab_size,
        )
        for i, result in zip(wanted_by, scores, strict=True):
            found[i].append(result)
        tokens: list[list[Scored]] = [[] for _ in due]
        if drawing:
            logits = logits_of(hidden[[index[p] for p in places]], [due[i].row.request.run for i, _ in drawing]).float()
            for i, token in self._draw([row for row, _ in due], drawing, guesses, logits=logits):
                tokens[i].append(token)
        return [_Got(row, n, s, t) for (row, n), s, t in zip(due, found, tokens, strict=True)]

    def _shared(self, due: list[Due], guesses: list[list[int]]) -> Mapping[int, Shared]:
        """Returns what rows share that feed one token, the last one of their text, by their ticket."""
        if not self.model.reads_once:
            return {}
        single = [d.row for d, guess in zip(due, guesses, strict=True) if not d.row.reads and not guess]
        return self.alike.of(single)

    def _guesses(self, due: list[Due]) -> list[list[int]]:
        """Returns tokens that each row may go on with, which the pass checks."""
        guesses: list[list[int]] = [[] for _ in due]
        drawing = [i for i, (row, n) in enumerate(due) if row.most_new and row.n + n == len(row.ids)]
        if self.speculation is not None and drawing:
            found = self.speculation.guess([due[i].row for i in drawing], self.sampler, sum(n for _, n in due))
            for i, guess in zip(drawing, found, strict=True):
                guesses[i] = guess
        return guesses

    def _draw(
        self, rows: list[Row], drawing: list[tuple[int, int]], guesses: list[list[int]], logits: torch.Tensor
    ) -> Iterator[tuple[int, Scored]]:
        """Yields (row, token) for what rows draw, with log-probabilities if they are asked for: for each row those that
        were guessed right, and the one after them.

        Args:
            drawing: the row of each of the logits, and after how many of its guesses they come; a row's are neighbours.
        """
        slots = [rows[i].slot or 0 for i, _ in drawing]
        ahead = [guesses[i][:k] for i, k in drawing]
        drawn = self.sampler.draw(logits, slots, ahead)
        ids: list[int] = drawn.tolist()
        kept = [at for at, before in enumerate(ahead) if ids[at - len(before) : at] == before]
        tokens = [Scored(ids[at]) for at in kept]
        asking = [rows[drawing[at][0]].request.logprobs for at in kept]
        if wanted := [j for j, n_top in enumerate(asking) if n_top is not None]:
            lines, n_top = [kept[j] for j in wanted], [asking[j] or 0 for j in wanted]
            for j, token in zip(wanted, score(logits[lines], [ids[at] for at in lines], n_top), strict=True):
                tokens[j] = token
        if len(kept) < len(ids):
            drawn = drawn[kept]
        self.sampler.advance([slots[at] for at in kept], drawn)  # the last that may fail: a pass may be tried again
        if self.speculation is not None:
            for i, of_row in groupby(kept, lambda at: drawing[at][0]):
                self.speculation.learn(rows[i], len(guesses[i]), [ids[at] for at in of_row])
        yield from ((drawing[at][0], token) for at, token in zip(kept, tokens, strict=True))


def _order(due: list[Due], shared: Mapping[int, Shared]) -> list[int]:
    """Returns the rows in an order in which those of a run are neighbours, within it those that share, and within them
    those whose keys can be one tensor: as many of them in each row, in the order in which they lie in the pool."""
    keys = [
        (row.request.run or "", shared.get(row.ticket, (-1, 0)), *((0, 0) if row.reads else (row.n, row.start or 0)))
        for row, _ in due
    ]
    return sorted(range(len(due)), key=keys.__getitem__)
