"""The engine: answers requests of different kinds and lengths together, one forward pass at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

import torch

from lit_gpt.errors import UserError, shown
from lit_gpt.generation.forward import ExtentModel, Piece
from lit_gpt.generation.pool import Pool
from lit_gpt.generation.request import Delta, Finish, Request, Scored
from lit_gpt.generation.rows import Row
from lit_gpt.generation.runs import SharedRun
from lit_gpt.generation.sampling import Sampler, check_bias
from lit_gpt.generation.scheduler import Due, Scheduler
from lit_gpt.generation.scored import score, score_in_parts
from lit_gpt.generation.text import Text
from lit_gpt.model import GPT
from lit_gpt.resources import is_out_of_memory, total_memory
from lit_gpt.tokenizer import Tokenizer

_SHARE = {"cpu": 0.4, "cuda": 0.8}
"""Share of the machine's memory, or of what is free on the GPU, that the KV cache takes at most."""


class Answer(NamedTuple):
    """A request's whole answer: its deltas joined."""

    text: str
    tokens: tuple[Scored, ...]
    prompt: tuple[Scored, ...]
    finish: Finish
    stop_reason: str | int | None
    error: str
    n_cached: int


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
    ) -> None:
        self.model, self.tokenizer, self.autocast = model.eval(), tokenizer, autocast
        device = model.transformer.wte.weight.device
        with autocast():
            on = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if on else model.transformer.wte.weight.dtype
        with torch.inference_mode(False), torch.no_grad():
            self.pool = Pool(model, max_tokens or _fitting(model, max_rows, dtype), dtype)
            updates = {name: run.updates for name, run in (runs or {}).items()}
            self.extent_model = ExtentModel(model, self.pool, updates)
        self.runs = dict(runs or {})
        self.scheduler = Scheduler(self.pool, max_rows, prefill_chunk)
        self.sampler = Sampler(model.config.padded_vocab_size, device)
        self._rows: dict[int, Row] = {}
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
            for row, n, *got in self._computed(due):
                self._guarded(row, lambda row=row, n=n, got=got: self._accept(row, n, *got))
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
            waiting=len(s.waiting) + len(self._inbox),
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
            else:
                self.scheduler.waiting.append(row)
        while self._cancelled:
            if (row := self._rows.get(self._cancelled.popleft())) is not None:
                self._guarded(row, lambda row=row: self._finish(row, "cancelled"))

    def _computed(self, due: list[Due]) -> list[tuple[Row, int, list[Scored], Scored | None]]:
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

    def _compute(self, due: list[Due]) -> list[tuple[Row, int, list[Scored], Scored | None]]:
        """Returns for each row: how many tokens it fed, scores of its prompt's tokens, and the token it drew."""
        pieces = [
            Piece(row.ids[row.n : row.n + n], row.n, start=row.start or 0, is_long=row.is_long, run=row.request.run)
            for row, n in due
        ]
        hidden = self.extent_model.hidden(pieces)
        at, scored, drawing = 0, [], []  # (due, index of a hidden state, target), (due, index)
        for i, (row, n) in enumerate(due):
            for p in range(max(row.n, row.scored_from - 1), min(row.n + n, len(row.prompt) - 1)):
                scored.append((i, at + p - row.n, row.ids[p + 1]))
            if row.most_new and row.n + n == len(row.ids):
                drawing.append((i, at + n - 1))
            at += n
        found: list[list[Scored]] = [[] for _ in due]
        n_top = [due[i].row.request.prompt_logprobs or 0 for i, _, _ in scored]
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
        tokens: list[Scored | None] = [None] * len(due)
        if drawing:
            lines, places = map(list, zip(*drawing, strict=True))
            for i, token in zip(lines, self._draw([due[i].row for i in lines], hidden[places]), strict=True):
                tokens[i] = token
        return [(row, n, s, token) for (row, n), s, token in zip(due, found, tokens, strict=True)]

    def _draw(self, rows: list[Row], hidden: torch.Tensor) -> list[Scored]:
        """Returns the next token of each row, with its log-probability if that is asked for."""
        logits = self.extent_model.logits(hidden, [row.request.run for row in rows]).float()
        ids: list[int] = self.sampler.sample(logits, [row.slot or 0 for row in rows]).tolist()
        wanted = [i for i, row in enumerate(rows) if row.request.logprobs is not None]
        tokens = [Scored(i) for i in ids]
        if wanted:
            n_top = [rows[i].request.logprobs or 0 for i in wanted]
            for i, scored in zip(wanted, score(logits[wanted], [ids[i] for i in wanted], n_top), strict=True):
                tokens[i] = scored
        return tokens

    def _accept(self, row: Row, n: int, scores: list[Scored], token: Scored | None) -> None:
        """Adds what was computed to a row, delivers it, and ends the row where it ends."""
        self._n_read += n if row.reads else 0
        row.n += n
        row.scored += scores
        if row.most_new == 0:
            if row.due == 0:
                self._finish(row, "length", prompt=_first_of(row) + tuple(row.scored))
            return
        if token is None:
            return
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
        if row.draws and row.slot is not None:
            self.sampler.remove(row.slot)
        self.scheduler.leave(row)
        n_cached = row.n_cached if row.n_new <= 1 else 0
        row.deliver(Delta(text, tokens, prompt, finish, reason, error, n_cached))

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
