"""Renders conversations with a chat template, and finds the prompts and the answers in the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError
from lit_gpt.prompts.ends import MARK, Ending
from lit_gpt.prompts.environment import Span
from lit_gpt.prompts.marked import marked_exchanges
from lit_gpt.prompts.messages import CallForm, calls_of, message, name_of
from lit_gpt.prompts.shown import after_prompt, answer_after, require_shown
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.prompts.windows import Place, exact_place, places_by_windows

_MIN_FOR_WINDOWS = 12
"""Number of answers in a conversation from which on each is looked up in a short conversation, not in the whole."""


class _Runs(Protocol):
    """A compiled chat template, in this process or in another one."""

    marks: bool

    def run(self, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Returns the text that the template makes, and the spans it marks; it may raise any exception."""
        ...


@dataclass(frozen=True)
class _Answer:
    """An answer, with its location in the text that a model is trained on."""

    turn: int
    start: int
    text: str
    end: str | None

    @property
    def stop(self) -> int:
        return self.start + len(self.text) + len(self.end or "")


class Renderer:
    """A chat template that renders conversations and finds the answers in their texts.

    Args:
        folder: the checkpoint folder, for messages.
        program, with_tools: the template for conversations without tools and with them.
        variables: what the template is given besides the conversation.
        form: the form in which it takes tool calls.
        ending: the way in which it ends an answer.
    """

    def __init__(
        self,
        folder: Path,
        program: _Runs,
        with_tools: _Runs,
        variables: Mapping[str, Any],
        form: CallForm = CallForm(),
        ending: Ending = Ending(()),
    ) -> None:
        self.folder, self._program, self._with_tools = folder, program, with_tools
        self.variables, self.form, self.ending = dict(variables), form, ending

    def render(self, turns: Sequence[Turn], ask: bool, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Returns the text of `turns`.

        Args:
            ask: whether to end with the text that asks for the next answer (`add_generation_prompt`).
            tools: schemas of the functions that the model may call.

        Raises:
            UserError: the template refuses the turns.
        """
        return self._run(turns, ask, tools, self.form)[0]

    def _run(
        self, turns: Sequence[Turn], ask: bool, tools: Sequence[Mapping[str, Any]], form: CallForm
    ) -> tuple[str, list[Span]]:
        """Returns the text of `turns`, and the spans of it that the template marks as the assistant's.

        Raises:
            UserError: the template refuses the turns.
        """
        given = {
            "messages": [message(t, form) for t in turns],
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": ask,
        }
        try:
            return (self._with_tools if tools else self._program).run(given | self.variables)
        except (LimitError, MemoryError):
            raise
        except Exception as e:  # a template is a stranger's program: it may raise anything
            reason = " ".join(str(e).split())[:500]
            raise UserError(f"the chat template of {self.folder} refuses a conversation: {reason}") from e

    def exchanges(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> list[Exchange]:
        """Returns the conversation as prompts with their answers; the last answer may be missing.

        If the template marks what the assistant says (`{% generation %}`), exactly that is supervised. Otherwise an
        answer is what the template adds to the prompt that asks for it, up to the token that ends it.

        The last answer always follows the very prompt that generation would see, even if the template shows the
        conversation differently once it is answered. An earlier answer is supervised only if the whole text still shows
        it, and everything before it, as generation saw them. Otherwise it becomes part of the next prompt: Qwen 3 drops
        earlier thoughts, for example, and Mistral moves the system text to the last question.

        Raises:
            UserError: the template refuses the conversation, hides tools, calls or thoughts that are in it, or does not
                show an answer after the prompt that asks for it.
        """
        asks = turns[-1].role != "assistant"
        whole, spans = self._run(turns, asks, tools, self.form)
        marks = (self._with_tools if tools else self._program).marks
        if marks:
            found = marked_exchanges(
                whole, spans, turns, ending=self.ending, shown=lambda n: self.render(turns[:n], False, tools)
            )
            targets = {len(turns) - 1: whole} if turns[-1].role == "assistant" and turns[-1].taught else {}
        else:
            answers, whole = self._answers(turns, tools, whole, asks)
            targets = {a.turn: a.text for a in answers if turns[a.turn].taught}
            found = [
                Exchange(whole[before.stop if before else 0 : a.start], a.text, a.end, turns[a.turn].taught)
                for before, a in zip([None, *answers], answers, strict=False)
            ]
        require_shown(
            lambda other, schemas: self.render(other, asks, schemas), self.folder, turns, tools=tools, answers=targets
        )
        done = sum(len(e.prompt) + len(e.answer or "") + len(e.end or "") for e in found)
        return [*found, Exchange(whole[done:])] if asks or not found else found

    def _answers(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], whole: str, asks: bool
    ) -> tuple[list[_Answer], str]:
        """Returns the answers that the text shows as generation sees and makes them, and that text.

        Raises:
            UserError: the template refuses the turns, or does not show the last answer after its prompt.
        """
        last: list[_Answer] = []
        if not asks:
            asked = self.render(turns[:-1], True, tools)
            text, end = self._last(turns, tools, whole, asked)
            whole = asked + text + (end or "")
            last = [_Answer(len(turns) - 1, len(asked), text, end)]
        earlier = [i for i, t in enumerate(turns[:-1]) if t.role == "assistant"]
        found = [
            self._answer_at(whole, turns, i, location)
            for i, location in self._places(whole, turns, earlier, tools).items()
        ]
        return [*filter(None, found), *last], whole

    def _places(
        self, whole: str, turns: Sequence[Turn], answers: Sequence[int], tools: Sequence[Mapping[str, Any]]
    ) -> dict[int, Place]:
        """Returns the locations of those of `answers` that `whole` shows after the prompts that ask for them, by turn.

        Raises:
            UserError: the template refuses the turns.
        """

        def render(some: Sequence[Turn], ask: bool) -> str:
            return self.render(some, ask, tools)

        if len(answers) >= _MIN_FOR_WINDOWS:
            try:
                found = places_by_windows(whole, turns, answers, render)
            except LimitError:
                raise
            except UserError:  # the template refuses the short conversation: fall back to the whole one
                found = None
            if found is not None:
                return found
        exact = {i: exact_place(whole, turns, i, render) for i in answers}
        return {i: location for i, location in exact.items() if location is not None}

    def _answer_at(self, whole: str, turns: Sequence[Turn], i: int, location: Place) -> _Answer | None:
        """Returns the answer of turn i, which is not the last one.

        None if `whole` does not hold what the model would have written there.
        """
        at, tail = location
        text, end = self.ending.cut(tail, turns[i].text.strip())
        if not whole.startswith(text, at):
            return None
        if end is None and (late := self.ending.after(text, whole[at + len(text) :])):
            text, end = late
        return _Answer(i, at, text, end) if whole.startswith(text + (end or ""), at) else None

    def _last(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], whole: str, asked: str
    ) -> tuple[str, str | None]:
        """Returns the last answer and the token that ends it, as they follow the prompt that asks for it.

        Raises:
            UserError: the template does not show the answer after that prompt.
        """
        answer = turns[-1].text.strip()
        found = self._after_prompt(turns, tools, asked, whole)
        if found is None:  # the template changes earlier turns, too: look at the last question and its answer alone
            since = max((i for i, t in enumerate(turns) if t.role == "user"), default=0)
            alone, shown = self.render(turns[since:-1], True, tools), self.render(turns[since:], False, tools)
            found = self._after_prompt(turns[since:], tools, alone, shown)
        if found is None or not whole.endswith(found[1]):
            raise UserError(
                f"the chat template of {self.folder} ends with {asked[-20:]!r} where it asks for an answer, and does "
                "not show the answer after that; take another --prompt_style"
            )
        opening, tail = found
        text, end = self.ending.cut(tail, answer)
        text = answer_after(opening, text, answer, self.folder)
        if end is None and self.ending.late:
            return self._late(turns, tools, whole, text)
        return text, end

    def _after_prompt(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], asked: str, whole: str
    ) -> tuple[str, str] | None:
        """Returns what `after_prompt` returns for the last answer.

        Raises:
            UserError: the template refuses the turns.
        """
        if whole.startswith(asked):
            return "", whole[len(asked) :]
        *before, asks, _ = turns
        text = message(asks).get("content", "").strip()
        marked = self.render([*before, replace(asks, text=MARK, context="")], True, tools)
        since = marked.find(MARK) + len(text)
        if MARK not in marked or asked[:since] != marked[: marked.find(MARK)] + text:
            since = len(self.render([*before, asks], False, tools))
        return after_prompt(asked, whole, since)

    def _late(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], whole: str, text: str
    ) -> tuple[str, str | None]:
        """Returns the last answer and the token that would end it if another turn followed.

        Raises:
            UserError: the template refuses the turns.
        """
        plain = text + self.ending.between, self.ending.token
        calls = calls_of(turns[-1])
        if not calls:
            return plain
        result = Turn("tool", "a", extra={"name": name_of(calls[0]), "tool_call_id": "abcdefghi"})
        try:
            more = self.render([*turns, result], False, tools)
        except UserError:
            more = ""
        rest = more[len(whole) :] if more.startswith(whole) else ""
        return self.ending.after(text, rest) or plain
