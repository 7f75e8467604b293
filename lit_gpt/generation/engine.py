"""The engine: answers requests of different kinds and lengths together, one forward pass at a time."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from lit_gpt.errors import UserError
from lit_gpt.generation.answers import Answer, Stats, joined
from lit_gpt.generation.batching.draft import DraftModel
from lit_gpt.generation.batching.forward import ExtentModel
from lit_gpt.generation.batching.passes import Passes, in_pass
from lit_gpt.generation.batching.pool import Pool, dtype_of, fitting
from lit_gpt.generation.batching.rows import Row
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.generation.batching.scheduler import Scheduler
from lit_gpt.generation.batching.speculation import Speculation
from lit_gpt.generation.batching.twins import Twins
from lit_gpt.generation.cpu.products import speeds_up
from lit_gpt.generation.refusals import require_answerable
from lit_gpt.generation.request import Delta, Finish, Request, Scored
from lit_gpt.generation.sampling.sampler import Sampler
from lit_gpt.generation.text import Text
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer


class Engine:
    """Answers requests of different kinds and lengths together: rows join and leave between steps.

    Args:
        model: the model on its device, in its dtype.
        runs: name -> LoRA run of this base model, as `load_shared` returns them; requests name theirs.
        max_rows: most requests that are answered at once; others wait.
        max_tokens: positions of the KV cache over all rows and kept prefixes; None takes what fits.
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
        with torch.inference_mode(False), torch.no_grad(), in_pass(autocast):
            fast = pack and speeds_up(model)
            dtype = torch.float32 if fast else dtype_of(model)
            self.pool = Pool(model, max_tokens or fitting(model, max_rows, dtype), dtype)
            updates = {name: run.updates for name, run in (runs or {}).items()}
            extent_model = ExtentModel(model, self.pool, updates, fast)
            guesses = None if draft is None else DraftModel(draft.eval(), self.pool)
        self.speculation = None
        if speculative_tokens:
            experts = model.config.n_expert > 0
            self.speculation = Speculation(speculative_tokens, device.type, guesses, experts=experts)
        self.runs = dict(runs or {})
        self.scheduler = Scheduler(self.pool, max_rows, prefill_chunk)
        self.sampler = Sampler(model.config.padded_vocab_size, device)
        self.passes = Passes(extent_model, self.sampler, self.speculation)
        self._rows: dict[int, Row] = {}
        self.twins = Twins()
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
            UserError: it does not fit the KV cache, or `require_answerable` refuses it.
        """
        require_answerable(request, self.model.config, self.runs)
        text, block_size = Text(self.tokenizer, request), self.model.config.block_size
        with self._entry:
            ticket = self._n_tickets
            row = Row(ticket, request, deliver, text, block_size=block_size, long_from=self.model.rope.long_from)
            if row.room > self.pool.size:
                asked = f"the prompt has {len(row.prompt):,} tokens and up to {row.most_new:,} are to come"
                raise UserError(f"{asked}; the KV cache has room for {self.pool.size:,}")
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
        with self._stepping, torch.inference_mode(), in_pass(self.autocast):
            self.work.clear()
            try:
                stepped = self._step()
            except BaseException as e:  # between passes, or Ctrl-C: nothing is known to be in order
                self._start_afresh(e)
                if not isinstance(e, Exception):
                    raise
                stepped = True
            if stepped:
                self.work.set()  # for a thread that waits: who stepped may step no more
            return stepped

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        """Returns the answers to requests, in order; steps until all are there."""
        deltas: list[list[Delta]] = [[] for _ in requests]
        tickets: list[int] = []
        try:
            for request, found in zip(requests, deltas, strict=True):
                tickets.append(self.submit(request, found.append))
            for found in deltas:
                while not found or found[-1].finish is None:
                    self.step()  # or another thread does
        except BaseException:
            for ticket in tickets:
                self.cancel(ticket)
            raise
        return [joined(found) for found in deltas]

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yields what is new of one answer; closing the iterator cancels the request."""
        found: deque[Delta] = deque()
        ticket = self.submit(request, found.append)
        finish = None
        try:
            while finish is None:
                while not found:
                    self.step()  # or another thread does
                finish = found[0].finish
                yield found.popleft()
        finally:
            if finish is None:
                self.cancel(ticket)
                if self._stepping.acquire(blocking=False):  # or who steps takes it in: this thread may be the one
                    try:
                        self._take_in()
                    finally:
                        self._stepping.release()

    def has_work(self) -> bool:
        """Returns whether a request is not answered yet."""
        return bool(self._rows)

    def cancel_all(self) -> None:
        """Ends all requests, from any thread, before the next step."""
        with self._entry:
            self._cancelled.extend(list(self._rows))
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

    def _step(self) -> bool:
        """Does what `step` does, for the thread that has its turn."""
        self._take_in()
        for row in self.scheduler.admit():
            if row.n_new == 0:
                self._guarded(row, lambda row=row: self._begin(row))
        due = sorted(self.scheduler.due(), key=lambda d: d.row.request.run or "")  # rows of a run are neighbours
        if not due:
            return False
        self._n_steps += 1
        tried = self.passes.tried(due)
        for row, error in tried.failed:
            self._fail(row, error)
        for row in tried.paused:
            self._pause(row)
        for row, n, scores, tokens in tried.got:
            self._guarded(row, lambda row=row, n=n, got=scores, token=tokens[:1]: self._accept(row, n, got, token))
            for token in tokens[1:]:  # guesses that were right, and what was drawn after them
                if row.ticket in self._rows:
                    self._guarded(row, lambda row=row, token=token: self._accept(row, 1, [], [token]))
        return True

    def _take_in(self) -> None:
        """Moves new requests into the queue, and ends those that were cancelled."""
        while self._inbox:
            row = self._inbox.popleft()
            if row.most_new == 0 and row.branches is None and row.scored_from >= len(row.prompt):
                self._guarded(row, lambda row=row: self._finish(row, "length", prompt=row.first_scored))
            elif not self.twins.join(row):
                self.scheduler.waiting.append(row)
        while self._cancelled:
            if (row := self._rows.get(self._cancelled.popleft())) is not None:
                self._guarded(row, lambda row=row: self._finish(row, "cancelled"))

    def _accept(self, row: Row, n: int, scores: list[Scored], tokens: list[Scored]) -> None:
        """Adds what was computed to a row, delivers it, and ends the row where it ends.

        Args:
            n: how many of its tokens were fed.
            tokens: the one that it drew, if it did.
        """
        self._n_read += n if row.reads else 0
        row.n += n
        row.scored += scores
        if row.branches is not None:
            if row.due == 0:
                self._finish(row, "length", continuations=row.branches.scores(row.scored))
            return
        if row.most_new == 0 and row.due == 0:
            shares, row.twins = row.shares(), []
            for one, scored in shares:
                one.n_cached = row.n_cached
                self._guarded(one, lambda o=one, s=scored: self._finish(o, "length", prompt=o.first_scored + s))
        if not tokens:
            return
        (token,) = tokens
        first = row.n_new == 0
        prompt = row.scored_prompt if first else ()
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
        continuations: tuple[tuple[Scored, ...], ...] = (),
    ) -> None:
        """Ends a row: frees its place, and delivers the rest of its answer."""
        if row.ticket not in self._rows:
            return
        if finish in ("stop", "length") and not closed:
            rest, stop = row.text.close(may_end=row.n_new > row.request.min_new_tokens)
            text += rest
            finish, reason = ("stop", stop) if stop is not None else (finish, reason)
        del self._rows[row.ticket]
        if (heir := self.twins.leave(row)) is not None:
            self.scheduler.waiting.appendleft(heir)
        if row.draws and row.slot is not None:
            self.sampler.remove(row.slot)
        self.scheduler.leave(row)
        n_cached = row.n_cached if row.n_new <= 1 else 0
        delta = Delta(text, tokens, prompt, finish=finish, stop_reason=reason, error=error, n_cached=n_cached)
        row.deliver(delta._replace(continuations=continuations))

    def _guarded(self, row: Row, act: Callable[[], None]) -> None:
        """Does something for one row; if it fails, only that row ends."""
        try:
            act()
        except Exception as e:
            self._fail(row, e)

    def _fail(self, row: Row, error: Exception) -> None:
        """Ends a row with an error."""
        with suppress(Exception):  # whoever takes its deltas may fail, too: nobody is left to tell then
            self._finish(row, "error", error=_line(error))

    def _start_afresh(self, error: BaseException) -> None:
        """Ends all rows with an error, and forgets whatever is kept."""
        rows = list(self._rows.values())
        self._rows.clear()
        self._inbox.clear()
        self.scheduler.clear()
        self.sampler.clear()
        self.twins = Twins()
        for row in rows:
            with suppress(Exception):
                row.deliver(Delta(finish="error", error=_line(error)))

    def _pause(self, row: Row) -> None:
        """Frees the memory of a row, which goes on later where it was."""
        self.scheduler.leave(row, pause=True)
        if row.n_new == 0:
            row.scored = []


def _line(error: BaseException) -> str:
    """Returns the first line of what an error says, or its name; TorchScript says what happened in the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0]
