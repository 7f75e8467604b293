"""The engine: answers requests of different kinds and lengths together, one forward pass at a time."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

from lit_gpt.errors import UserError, shown
from lit_gpt.generation.draft import DraftModel
from lit_gpt.generation.forward import ExtentModel, Piece
from lit_gpt.generation.pool import Pool
from lit_gpt.generation.products import speeds_up
from lit_gpt.generation.request import Delta, Finish, Request, Scored
from lit_gpt.generation.rows import Row
from lit_gpt.generation.runs import SharedRun
from lit_gpt.generation.sampling import Sampler, check_bias
from lit_gpt.generation.scheduler import Due, Scheduler
from lit_gpt.generation.scored import score, score_in_parts
from lit_gpt.generation.speculation import Speculation
from lit_gpt.generation.text import Text
from lit_gpt.model import GPT
from lit_gpt.resources import is_out_of_memory, total_memory
from lit_gpt.tokenizer import Tokenizer

_SHARE = {"cpu": 0.4, "cuda": 0.8}
"""Share of the machine's memory, or of what is free on the GPU, that the KV cache takes at most."""


class Answer(NamedTuple):
    """A request's whole answer: its deltas joined."""

    text: str = ""
    tokens: tuple[Scored, ...] = ()
    prompt: tuple[Scored, ...] = ()
    finish: Finish = "length"
    stop_reason: str | int | None = None
    error: str = ""
    n_cached: int = 0


class Stats(NamedTuple):
    """What an engine does and has done."""

    running: int
    waiting: int
    tokens_kept: int
    """Positions of the KV cache that hold prefixes which no row uses."""
    tokens_free: int
    tokens_reused: int
    """Tokens whose keys and values were there already, since the start."""
    tokens_read: int
    """Tokens of prompts that were computed, since the start."""
    tokens_generated: int
    steps: int


class Engine:
    """Answers requests of different kinds and lengths together: rows join and leave between steps.

    Args:
        model: the model on its device, in its dtype.
        runs: name -> LoRA run of this base model, as `load_shared` returns them; requests name theirs.
        max_rows: most requests that are answered at once; others wait.
        max_tokens: positions of the KV cache over all rows and kept prefixes; None takes what fits, up to full
            contexts for all rows.
        prefill_chunk: most tokens of prompts that are read in a step, so that a long one does not stall other rows.
        autocast: context of every forward pass, e.g. `fabric.autocast`.
        speculative_tokens: most tokens that are guessed for a row in a step; texts stay the same.
        draft: smaller model of the same tokenizer that guesses; None looks guesses up in the row's own text.
        pack: on a CPU, pack the weights, where that makes steps faster; that takes a second for 100 million weights.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        runs: Mapping[str, SharedRun] | None = None,
        max_rows: int = 64,
        max_tokens: int | None = None,
        prefill_chunk: int = 512,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        speculative_tokens: int = 0,
        draft: GPT | None = None,
        pack: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.autocast = model.eval(), tokenizer, autocast
        device = model.transformer.wte.weight.device
        with autocast():
            fast = pack and speeds_up(model)
            on = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if on else model.transformer.wte.weight.dtype
            dtype = torch.float32 if fast else dtype
        with torch.inference_mode(False), torch.no_grad():
            self.pool = Pool(model, max_tokens or _fitting(model, max_rows, dtype), dtype)
            updates = {name: run.updates for name, run in (runs or {}).items()}
            self.extent_model = ExtentModel(model, self.pool, updates, fast)
            guesses = None if draft is None else DraftModel(draft.eval(), self.pool)
        self.speculation = Speculation(speculative_tokens, device.type, guesses) if speculative_tokens else None
        self.runs = dict(runs or {})
        self.scheduler = Scheduler(self.pool, max_rows, prefill_chunk)
        self.sampler = Sampler(model.config.padded_vocab_size, device)
        self._rows: dict[int, Row] = {}
        self._leaders = WeakValueDictionary[Any, Row]()
        """Rows that only score, by what they feed."""
        self._inbox: deque[Row] = deque()
        self._cancelled: deque[int] = deque()
        self._n_tickets = 0
        self._entry, self._stepping = threading.Lock(), threading.Lock()
        self.work = threading.Event()
        """Set while there may be something to do."""
        self._n_read = self._n_generated = self._n_steps = 0

    def submit(self, request: Request, deliver: Callable[[Delta], None]) -> int:
        """Takes a request in, from any thread; returns its ticket.

        Args:
            deliver: called with what is new of the answer on the thread that steps; the last delta has `finish`.

        Raises:
            UserError: the prompt is empty, has tokens that the model does not have, or does not fit; or there is no
                such run.
        """
        c = self.model.config
        n = len(request.ids)
        if n == 0:
            raise UserError("the prompt has no tokens")
        if wrong := [i for i in request.ids if not 0 <= i < c.padded_vocab_size]:
            raise UserError(f"token {wrong[0]} is not one of the model's {c.padded_vocab_size:,}")
        if n - (request.max_new_tokens == 0) > c.block_size:
            raise UserError(f"the prompt has {n:,} tokens, and the model has room for {c.block_size:,} in all")
        check_bias(request.sampling, c.padded_vocab_size)
        if request.run is not None and request.run not in self.runs:
            known = f"known are {', '.join(self.runs)}" if self.runs else "the model is served alone"
            raise UserError(f"there is no run {shown(request.run)}; {known}")
        most_new = min(request.max_new_tokens, c.block_size + 1 - n)
        text = Text(self.tokenizer, request)
        with self._entry:
            ticket = self._n_tickets
            row = Row(ticket, request, deliver, text, most_new)
            length = min(n + most_new, c.block_size) if most_new else n - 1
            row.is_long = self.model.rope.long_from is not None and length > self.model.rope.long_from
            row.key = request.run, row.is_long
            if row.room > self.pool.size:
                raise UserError(
                    f"the prompt has {n:,} tokens and up to {most_new:,} are to come; the KV cache has room for "
                    f"{self.pool.size:,}"
                )
            self._n_tickets += 1
            self._rows[ticket] = row
            self._inbox.append(row)
        self.work.set()
        return ticket

    def cancel(self, ticket: int) -> None:
        """Ends a request, from any thread, before the next step; one that has ended already is left alone."""
        self._cancelled.append(ticket)
        self.work.set()

    def step(self) -> bool:
        """Runs one forward pass for whoever is due; returns False if there is nothing to do."""
        with self._stepping, torch.inference_mode(), self.autocast():
            self._take_in()
            for row in self.scheduler.admit():
                if row.n_new == 0:
                    self._guarded(row, lambda row=row: self._begin(row))
            due = sorted(self.scheduler.due(), key=lambda d: d.row.request.run or "")  # rows of a run are neighbours
            if not due:
                return False
            self._n_steps += 1
            for row, n, scores, tokens in self._computed(due):
                self._guarded(row, lambda row=row, n=n, got=scores, token=tokens[:1]: self._accept(row, n, got, token))
                for token in tokens[1:]:  # guesses that were right, and what was drawn after them
                    if row.ticket in self._rows:
                        self._guarded(row, lambda row=row, token=token: self._accept(row, 1, [], [token]))
            return True

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        """Returns the answers to requests, in order; steps until all are there."""
        deltas: list[list[Delta]] = [[] for _ in requests]
        tickets: list[int] = []
        try:
            for request, found in zip(requests, deltas, strict=True):
                tickets.append(self.submit(request, found.append))
            for found in deltas:
                while not found or found[-1].finish is None:
                    self._step_or_wait()
        except BaseException:
            for ticket in tickets:
                self.cancel(ticket)
            raise
        return [joined(found) for found in deltas]

    def _step_or_wait(self) -> None:
        """Steps; where another thread has done so already, leaves it time to deliver."""
        if not self.step():
            time.sleep(0.001)

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yields what is new of one answer; closing the iterator cancels the request."""
        found: deque[Delta] = deque()
        ticket = self.submit(request, found.append)
        finish = None
        try:
            while finish is None:
                while not found:
                    self._step_or_wait()
                finish = found[0].finish
                yield found.popleft()
        finally:
            if finish is None:
                self.cancel(ticket)
                with self._stepping:
                    self._take_in()

    def has_work(self) -> bool:
        """Returns whether a request is not answered yet."""
        return bool(self._rows)

    def cancel_all(self) -> None:
        """Ends all requests, from any thread, before the next step."""
        with self._entry:
            self._cancelled.extend(self._rows)
        self.work.set()

    def stats(self) -> Stats:
        """Returns what the engine does and has done."""
        s = self.scheduler
        return Stats(
            running=len(s.running),
            waiting=len(self._rows) - len(s.running),
            tokens_kept=s.prefixes.n_kept,
            tokens_free=self.pool.n_free,
            tokens_reused=s.n_hits,
            tokens_read=self._n_read,
            tokens_generated=self._n_generated,
            steps=self._n_steps,
        )

    def _begin(self, row: Row) -> None:
        """Makes the sampler ready for a row that has its place."""
        assert row.slot is not None
        self.sampler.add(row.slot, row.request)
        row.draws = True

    def _take_in(self) -> None:
        """Moves new requests into the queue, and ends those that were cancelled."""
        self.work.clear()
        while self._inbox:
            row = self._inbox.popleft()
            if row.most_new == 0 and row.scored_from >= len(row.prompt):
                self._guarded(row, lambda row=row: self._finish(row, "length", prompt=_first_of(row)))
            elif not self._joins(row):
                self.scheduler.waiting.append(row)
        while self._cancelled:
            if (row := self._rows.get(self._cancelled.popleft())) is not None:
                self._guarded(row, lambda row=row: self._finish(row, "cancelled"))

    def _joins(self, row: Row) -> bool:
        """Returns whether a request only scores, and another one that waits feeds the same tokens and leads it."""
        if row.most_new:
            return False
        key = row.key, row.prompt[:-1].tobytes()
        leader = self._leaders.get(key)
        if leader is None or leader.ticket not in self._rows or leader.start is not None:
            self._leaders[key] = row
            return False
        leader.twins.append(row)
        row.leader = leader
        return True

    def _computed(self, due: list[Due]) -> list[tuple[Row, int, list[Scored], list[Scored]]]:
        """Returns what `_compute` does; a row that makes it fail ends with an error, and others go on without it.

        Without memory for all, the youngest row goes back to the queue.
        """
        try:
            return self._compute(due)
        except Exception as e:
            if len(due) == 1:
                self._fail(due[0].row, e)
                return []
            if isinstance(e, RuntimeError) and is_out_of_memory(e):
                youngest = max((d.row for d in due), key=lambda row: row.ticket)
                self._pause(youngest)
                return self._computed([d for d in due if d.row is not youngest])
            return [result for d in due for result in self._computed([d])]

    def _compute(self, due: list[Due]) -> list[tuple[Row, int, list[Scored], list[Scored]]]:
        """Returns for each row: how many known tokens it fed, scores of its prompt's tokens, and tokens it drew."""
        guesses = self._guesses(due)
        pieces = [
            Piece(
                [*row.ids[row.n : row.n + n], *guess],
                row.n,
                start=row.start or 0,
                is_long=row.is_long,
                run=row.request.run,
            )
            for (row, n), guess in zip(due, guesses, strict=True)
        ]
        hidden = self.extent_model.hidden(pieces)
        at, scored = 0, []  # (due, index of a hidden state, target)
        drawing, places = [], []  # (due, number of guesses before), index of a hidden state
        for i, (row, n) in enumerate(due):
            for p in range(max(row.n, row.scores_from - 1), min(row.n + n, len(row.prompt) - 1)):
                scored += [(i, at + p - row.n, target) for target in row.targets(p)]
            if row.most_new and row.n + n == len(row.ids):
                drawing += [(i, k) for k in range(len(guesses[i]) + 1)]
                places += range(at + n - 1, at + n + len(guesses[i]))
            at += n + len(guesses[i])
        found: list[list[Scored]] = [[] for _ in due]
        n_top = [due[i].row.n_top for i, _, _ in scored]
        scores = score_in_parts(
            lambda part: self.extent_model.logits(
                hidden[[place for _, place, _ in scored[part]]], [due[i].row.request.run for i, _, _ in scored[part]]
            ),
            targets=[target for _, _, target in scored],
            n_top=n_top,
            V=self.model.config.padded_vocab_size,
        )
        for (i, _, _), result in zip(scored, scores, strict=True):
            found[i].append(result)
        tokens: list[list[Scored]] = [[] for _ in due]
        if drawing:
            logits = self.extent_model.logits(hidden[places], [due[i].row.request.run for i, _ in drawing]).float()
            for i, token in self._draw([row for row, _ in due], drawing, guesses, logits=logits):
                tokens[i].append(token)
        return [(row, n, s, t) for (row, n), s, t in zip(due, found, tokens, strict=True)]

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
        if len(kept) < len(ids):
            drawn = drawn[kept]
        self.sampler.advance([slots[at] for at in kept], drawn)
        tokens = [Scored(ids[at]) for at in kept]
        asking = [rows[drawing[at][0]].request.logprobs for at in kept]
        if wanted := [j for j, n_top in enumerate(asking) if n_top is not None]:
            lines, n_top = [kept[j] for j in wanted], [asking[j] or 0 for j in wanted]
            for j, token in zip(wanted, score(logits[lines], [ids[at] for at in lines], n_top), strict=True):
                tokens[j] = token
        if self.speculation is not None:
            n_kept = Counter(drawing[at][0] for at in kept)
            for i, n in n_kept.items():
                self.speculation.learn(rows[i], len(guesses[i]), n - 1)
        yield from ((drawing[at][0], token) for at, token in zip(kept, tokens, strict=True))

    def _accept(self, row: Row, n: int, scores: list[Scored], tokens: list[Scored]) -> None:
        """Adds what was computed to a row, delivers it, and ends the row where it ends.

        Args:
            n: how many of its tokens were fed.
            tokens: the one that it drew, if it did.
        """
        self._n_read += n if row.reads else 0
        row.n += n
        row.scored += scores
        if row.most_new == 0:
            if row.due == 0:
                shares, row.twins = row.shares(), []
                for one, scored in shares:
                    one.n_cached = row.n_cached
                    self._guarded(one, lambda o=one, s=scored: self._finish(o, "length", prompt=_first_of(o) + s))
            return
        if not tokens:
            return
        (token,) = tokens
        first = row.n_new == 0
        prompt = _first_of(row) + tuple(row.scored) if first else ()
        row.ids.append(token.id)
        self._n_generated += 1
        may_end = row.n_new > row.request.min_new_tokens
        if may_end and token.id in row.request.stop_ids:
            self._finish(row, "stop", token.id, tokens=(token,), prompt=prompt)
            return
        text, stop = row.text.push(token.id, may_end)
        if stop is not None:
            self._finish(row, "stop", stop, text=text, tokens=(token,), prompt=prompt, closed=True)
        elif row.n_new == row.most_new:
            self._finish(row, "length", text=text, tokens=(token,), prompt=prompt)
        else:
            row.deliver(Delta(text, (token,), prompt, n_cached=row.n_cached if first else 0))

    def _finish(
        self,
        row: Row,
        finish: Finish,
        reason: str | int | None = None,
        *,
        text: str = "",
        tokens: tuple[Scored, ...] = (),
        prompt: tuple[Scored, ...] = (),
        closed: bool = False,
        error: str = "",
    ) -> None:
        """Ends a row: frees its place, and delivers the rest of its answer."""
        if row.ticket not in self._rows:
            return
        if finish in ("stop", "length") and not closed:
            rest, stop = row.text.close(may_end=row.n_new > row.request.min_new_tokens)
            text += rest
            finish, reason = ("stop", stop) if stop is not None else (finish, reason)
        del self._rows[row.ticket]
        self._bequeath(row)
        if row.draws and row.slot is not None:
            self.sampler.remove(row.slot)
        self.scheduler.leave(row)
        n_cached = row.n_cached if row.n_new <= 1 else 0
        row.deliver(Delta(text, tokens, prompt, finish, reason, error, n_cached))

    def _bequeath(self, row: Row) -> None:
        """Takes a row that ends from its leader; makes the first of its twins lead the others, if it has some."""
        if row.leader is not None and row in row.leader.twins:
            row.leader.twins.remove(row)
        if row.twins:
            heir, *others = row.twins
            row.twins, heir.twins, heir.leader = [], others, None
            for other in others:
                other.leader = heir
            self.scheduler.waiting.appendleft(heir)

    def _guarded(self, row: Row, act: Callable[[], None]) -> None:
        """Does something for one row; if it fails, only that row ends."""
        try:
            act()
        except Exception as e:
            self._fail(row, e)

    def _fail(self, row: Row, error: Exception) -> None:
        """Ends a row with an error."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        with suppress(Exception):  # whoever takes its deltas may fail, too: nobody is left to tell then
            self._finish(row, "error", error=lines[0])

    def _pause(self, row: Row) -> None:
        """Frees the memory of a row, which goes on later where it was."""
        if row.n_new == 0:
            row.scored = []
        self.scheduler.leave(row, pause=True)


def joined(deltas: Sequence[Delta]) -> Answer:
    """Returns a whole answer, of all deltas of a request."""
    last = deltas[-1]
    assert last.finish is not None
    return Answer(
        "".join(d.text for d in deltas),
        tuple(t for d in deltas for t in d.tokens),
        tuple(t for d in deltas for t in d.prompt),
        last.finish,
        last.stop_reason,
        last.error,
        deltas[0].n_cached,
    )


def _first_of(row: Row) -> tuple[Scored, ...]:
    """Returns the first token of a prompt, which follows nothing, if it is among those that are scored."""
    asked = row.request.prompt_logprobs is not None and row.request.prompt_logprobs_from == 0
    return (Scored(row.ids[0]),) if asked else ()


def _fitting(model: GPT, max_rows: int, dtype: torch.dtype) -> int:
    """Returns how many positions the KV cache can have: what fits into memory, up to full contexts for all rows."""
    c, device = model.config, model.transformer.wte.weight.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else total_memory()
    position = 2 * c.n_layer * c.n_query_groups * c.head_size * dtype.itemsize
    return max(1, min(max_rows * c.block_size, int(free * _SHARE.get(device.type, 0.4)) // position))
