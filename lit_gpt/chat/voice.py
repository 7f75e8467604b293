"""A model that takes part in a chat: asks the engine as the training did, within what the model has room for."""

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from lit_gpt.args import ChatArgs
from lit_gpt.chat.conversation import Conversation, Said
from lit_gpt.errors import UserError
from lit_gpt.generation.conversation import Asked, asked
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import Delta, Finish, Request, Sampling
from lit_gpt.prompts import ChatTemplate, Style
from lit_gpt.tokenizer import Tokenizer


@dataclass
class Reply:
    """An answer, as it grows, with its figures."""

    asked: Asked
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    error: str = ""
    n_new: int = 0
    n_cached: int = 0
    """Tokens of the prompt that were read from the cache."""
    begun: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    """Seconds until the first token."""
    seconds: float = 0.0

    def figures(self) -> str:
        """Returns the figures as a line."""
        n = len(self.asked.ids)
        rate = (self.n_new - 1) / (self.seconds - self.first) if self.n_new > 1 else 0
        return (
            f"prompt: {n:,} tokens, {self.n_cached:,} of them in the cache; first token after {self.first:.2f} s; "
            f"{self.n_new:,} written, {rate:.1f} tokens/sec"
        )


@dataclass
class Voice:
    """A model, or a finetuned run of it, with its conversation."""

    name: str
    engine: Engine
    run: str | None
    """Name of the run in the engine; None is the engine's model itself."""
    style: Style | ChatTemplate
    style_name: str
    tokenizer: Tokenizer
    end_ids: Collection[int] = ()
    """Tokens that ended answers in training, besides the style's own."""
    conversation: Conversation = field(default_factory=Conversation)

    @property
    def room(self) -> int:
        """Most tokens of a prompt with its answer."""
        return min(self.engine.model.config.block_size, self.engine.pool.size)

    def ask(self, question: str, since: int | None = None) -> Asked:
        """Returns the prompt that asks a question after what was said.

        Args:
            since: index of the first earlier question to show; that of the conversation if not given.

        Raises:
            UserError: the prompt style refuses the conversation.
        """
        c = self.conversation
        found = asked(self.style, self.tokenizer, c.turns(question, since), end_ids=self.end_ids, written=c.ids_of)
        if not found.ids:  # an empty text, and a tokenizer that begins none with a token
            t = self.tokenizer
            return found._replace(ids=[t.eos_id if t.bos_id is None else t.bos_id])
        return found

    def fit(self, question: str, args: ChatArgs, begun: Sequence[int] = ()) -> tuple[Asked, int]:
        """Returns the prompt for a question, and how many of the earliest exchanges the model does not see any more.

        There must be room for the answer, or for a quarter of the context if the answer may be longer than that.
        Where there is none, the conversation begins later, so that another quarter is free: if it began as late as it
        has to, each further question would move it on, and then nothing is in the cache that the prompt begins with.

        Args:
            begun: tokens of the answer that are there already.

        Raises:
            UserError: the question alone is too long, or the prompt style refuses the conversation.
        """
        c, quarter = self.conversation, self.room // 4
        answer = len(begun) + min(args.max_new_tokens, quarter)
        found = self.ask(question)
        if len(found.ids) + answer <= self.room:
            return found, 0
        shorter = range(c.first + 1, len(c.said) + 1)
        at = bisect_left(shorter, True, key=lambda i: len(self.ask(question, i).ids) + answer <= self.room - quarter)
        first = shorter[min(at, len(shorter) - 1)] if shorter else c.first
        found = self.ask(question, first)
        if len(found.ids) + len(begun) >= self.room:
            rest = " without what was said before" if c.said else ""
            raise UserError(
                f"the question has {len(found.ids):,} tokens{rest}, and the model has room for {self.room:,} with the "
                "answer; ask with fewer words"
            )
        dropped, c.first = first - c.first, first
        return found, dropped

    def request(self, asked: Asked, args: ChatArgs, seed: int, begun: Sequence[int] = ()) -> Request:
        """Returns the request that lets the model answer a prompt.

        Args:
            begun: tokens of the answer that are there already.
        """
        ids = [*asked.ids, *begun]
        sampling = Sampling(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            seed=seed,
        )
        most = min(args.max_new_tokens, self.room - len(ids))
        return Request(ids, most, sampling, stop_ids=asked.stop_ids, run=self.run)

    def said(self, question: str, reply: Reply) -> Said:
        """Returns a question and the answer in a reply as the conversation keeps them."""
        text = shown = reply.text
        if isinstance(self.style, Style):  # it puts these texts around an answer itself
            text = text.removeprefix(self.style.lead).removesuffix(self.style.tail)
            shown = self.style.answer(text)
        return Said(question, text, reply.text, shown=shown, ids=tuple(reply.ids), is_whole=reply.finish == "stop")


def answer(
    asks: Sequence[tuple[Voice, Request, Reply]],
    show: Callable[[int, str], None],
    is_stopped: Callable[[], bool],
) -> None:
    """Lets voices answer together, and fills in their replies.

    Args:
        show: is given the index of a voice and what is new of its answer.
        is_stopped: returns whether the user wants no more.

    Raises:
        UserError: a request is refused, or fails.
    """
    engines = {id(voice.engine): voice.engine for voice, *_ in asks}.values()
    tickets: list[tuple[Engine, int]] = []
    try:
        for i, (voice, request, reply) in enumerate(asks):
            tickets.append((voice.engine, voice.engine.submit(request, _taking(reply, request, i, show))))
        while any(reply.finish is None for *_, reply in asks):
            if is_stopped():
                _cancel(tickets)
            for engine in engines:
                engine.step()
    except BaseException:
        _cancel(tickets)
        for engine in engines:
            engine.step()
        raise
    if failed := next((reply.error for *_, reply in asks if reply.finish == "error"), None):
        raise UserError(failed)


def _cancel(tickets: Sequence[tuple[Engine, int]]) -> None:
    for engine, ticket in tickets:
        engine.cancel(ticket)


def _taking(reply: Reply, request: Request, i: int, show: Callable[[int, str], None]) -> Callable[[Delta], None]:
    """Returns a function that adds what is new to a reply, and shows it."""
    pending: list[int] = []  # tokens whose text is not there yet

    def take(delta: Delta) -> None:
        now = time.perf_counter() - reply.begun
        if reply.n_new == 0:
            reply.n_cached, reply.first = delta.n_cached, now
        reply.n_new += len(delta.tokens)
        reply.seconds = now
        pending.extend(t.id for t in delta.tokens if t.id not in request.stop_ids)
        if delta.text or delta.finish in ("stop", "length"):
            reply.ids += pending
            pending.clear()
        reply.text += delta.text
        if delta.text:
            show(i, delta.text)
        reply.finish, reply.error = delta.finish, delta.error

    return take
