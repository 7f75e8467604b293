"""A chat: asks the voices what the user types, shows their answers, and remembers what was said."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lit_gpt.args import ChatArgs
from lit_gpt.chat.columns import NARROWEST, Columns
from lit_gpt.chat.conversation import Said
from lit_gpt.chat.terminal import Terminal
from lit_gpt.chat.voice import Reply, Voice, answer
from lit_gpt.errors import UserError
from lit_gpt.generation.request import Request

_Ask = tuple[Voice, Request, Reply]


class Session:
    """A chat with one model, or with two that are compared.

    Args:
        voices: the models; where there are two, the last one is the one that is finetuned.
    """

    def __init__(self, voices: Sequence[Voice], args: ChatArgs) -> None:
        self.voices, self.args, self.terminal = voices, args, Terminal()
        self.replies: list[Reply] = []
        """The latest answers, one for each voice."""
        self.n_asked = 0
        """Answers since the seed was set."""
        self.is_stopped = False
        """Whether the user stopped the latest answer."""
        self.saved: tuple[Path, list[Said]] | None = None
        """The file to which something was saved last, and the questions and answers."""

    @property
    def last(self) -> Said | None:
        """The latest question with its answer; None if nothing was said."""
        said = self.voices[-1].conversation.said
        return said[-1] if said else None

    def ask(self, question: str) -> None:
        """Asks the voices, shows their answers as they come, and adds them to the conversations.

        Raises:
            UserError: the question is too long, or the prompt style refuses the conversation.
        """
        self._answer([question] * len(self.voices), [None] * len(self.voices))

    def retry(self) -> None:
        """Asks the latest question again; if that fails, the answer that there was stays.

        Raises:
            UserError: nothing was asked.
        """
        self._again("there is no answer yet", begun=False)

    def go_on(self) -> None:
        """Lets the latest answer go on where it was cut or stopped.

        Raises:
            UserError: there is none, or it has ended.
        """
        if self.last is not None and all(v.conversation.said[-1].is_whole for v in self.voices):
            raise UserError("the model ended its answer itself; ask, or /retry")
        self._again("there is no answer yet", begun=True)

    def _again(self, nothing: str, begun: bool) -> None:
        """Takes the latest answers back and asks for them again; `begun` lets them go on."""
        if self.last is None:
            raise UserError(nothing)
        taken = [(v.conversation.first, v.conversation.take_back()) for v in self.voices]
        said = [s for _, s in taken if s is not None]
        n_before = len(self.voices[0].conversation.said)
        try:
            self._answer([s.question for s in said], said if begun else [None] * len(said))
        finally:
            for voice, (first, before) in zip(self.voices, taken, strict=True):
                if before is not None and len(voice.conversation.said) == n_before:
                    voice.conversation.add(before)
                    voice.conversation.first = first

    def _answer(self, questions: Sequence[str], begun: Sequence[Said | None]) -> None:
        """Asks each voice its question; where an answer has begun, the voice goes on with it."""
        with _interrupts() as is_stopped:
            asks = self._asks(questions, begun)
            self._show([ask for ask in asks if ask[2].finish is None], is_stopped)
            self.is_stopped = is_stopped()
        self.n_asked += 1
        self.replies = [reply for *_, reply in asks]
        self._keep(questions)
        self._say_ends(asks)

    def _asks(self, questions: Sequence[str], begun: Sequence[Said | None]) -> list[_Ask]:
        """Returns what each voice is asked; the reply of one that has ended its answer has a `finish`."""
        asks = []
        for voice, question, so_far in zip(self.voices, questions, begun, strict=True):
            start = time.perf_counter()
            ids = so_far.ids if so_far else ()
            found, n_dropped = voice.fit(question, self.args, begun=ids)
            self._say_dropped(voice, n_dropped)
            reply = Reply(found, list(ids), so_far.written if so_far else "", begun=start)
            reply.finish = "stop" if so_far and so_far.is_whole else None
            request = voice.request(found, self.args, seed=self.args.seed + self.n_asked, begun=ids)
            asks.append((voice, request, reply))
        return asks

    def _show(self, asks: Sequence[_Ask], is_stopped: Callable[[], bool]) -> None:
        """Streams answers: one below the other, or side by side where the terminal has room."""
        if len(self.voices) == 1:
            write = _without_blank_start(self.terminal.write, bool(asks[0][2].text))
            answer(asks, lambda i, text: write(text), is_stopped)
            self.terminal.write("\n")
            return
        names = [voice.name for voice, *_ in asks]
        if self.terminal.is_shown and self.terminal.columns >= NARROWEST and len(asks) > 1:
            columns = Columns(names, self.terminal.columns, self.terminal.write_shaped, self.terminal.title)
            writes = [_without_blank_start(lambda text, i=i: columns.push(i, text)) for i in range(len(asks))]
            answer(asks, lambda i, text: writes[i](text), is_stopped)
            for i in range(len(asks)):
                columns.end(i)
            return
        for name, ask in zip(names, asks, strict=True):  # one after the other: each is read while it is written
            self.terminal.write_shaped(self.terminal.title(f"{name}:") + "\n")
            write = _without_blank_start(self.terminal.write)
            answer([ask], lambda i, text, write=write: write(text), is_stopped)
            self.terminal.write("\n")

    def _keep(self, questions: Sequence[str]) -> None:
        """Adds the answers to the conversations, unless the user stopped them before their first word."""
        if self.is_stopped and not any(reply.text for reply in self.replies):
            self.terminal.note("[stopped before the answer; the question is taken back]")
            return
        for voice, question, reply in zip(self.voices, questions, self.replies, strict=True):
            voice.conversation.add(voice.said(question, reply))

    def _say_dropped(self, voice: Voice, n: int) -> None:
        """Says that a voice does not see the earliest exchanges any more."""
        if n:
            whose = f" of {voice.name}" if len(self.voices) > 1 else ""
            what = "question with its answer" if n == 1 else f"{n} questions with their answers"
            self.terminal.note(
                f"[the conversation{whose} is longer than the model has room for ({voice.room:,} tokens): it does not "
                f"see the earliest {what} any more]"
            )

    def _say_ends(self, asks: Sequence[_Ask]) -> None:
        """Says which answers did not end by themselves, and what the user can do."""
        if self.is_stopped and self.last is not None:
            self.terminal.note("[stopped; /continue lets it go on, /retry asks again]")
            return
        for voice, request, reply in asks:
            if reply.finish != "length":
                continue
            whose = f"the answer of {voice.name}" if len(self.voices) > 1 else "the answer"
            if request.max_new_tokens < self.args.max_new_tokens:
                self.terminal.note(f"[{whose} is cut: the model has room for {voice.room:,} tokens in all]")
            else:
                self.terminal.note(
                    f"[{whose} is cut at max_new_tokens {self.args.max_new_tokens}; /continue lets it go on, "
                    f"/set max_new_tokens {2 * self.args.max_new_tokens} allows longer ones]"
                )


def _without_blank_start(write: Callable[[str], None], is_begun: bool = False) -> Callable[[str], None]:
    """Returns a `write` for the parts of an answer that leaves out the white space before its first word."""
    begun = is_begun

    def write_part(text: str) -> None:
        nonlocal begun
        text = text if begun else text.lstrip()
        begun = begun or bool(text)
        if text:
            write(text)

    return write_part


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Lets ctrl-C set a mark, which is returned, so that it breaks no step of the engine off in its middle."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def talk(session: Session, obey: Callable[[Session, str], bool], next_message: Callable[[], str], typed: bool) -> None:
    """Answers messages until there are no more, or the user leaves.

    Args:
        obey: does what a message says if it is a command, and returns whether it is one; raises EOFError to leave.
        next_message: returns what the user says next; raises EOFError at the end.
        typed: whether a user types the messages, who can mend a mistake; without one, a mistake ends the chat.

    Raises:
        UserError: a mistake in a message, where nobody types.
        KeyboardInterrupt: ctrl-C, where nobody types.
    """
    pressed = False  # whether the last thing was ctrl-C
    while True:
        try:
            message = next_message()
            pressed = session.is_stopped = False
            if message.strip() and not obey(session, message):
                session.ask(message.removeprefix("/") if message.startswith("//") else message)
            pressed = session.is_stopped
            if pressed and not typed:
                raise KeyboardInterrupt
        except EOFError:
            if typed:
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            if pressed:
                print(file=sys.stderr)
                return
            pressed = True
            session.terminal.note("\n[ctrl-C again or ctrl-D leaves]")
        except UserError as e:
            if not typed:
                raise
            session.terminal.note(f"error: {e}")
