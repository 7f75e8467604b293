"""Chat templates in the process for foreign code: programs that run there, and conversations rendered there."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.foreign import Limits, RaisedError, Remote
from lit_gpt.prompts.ends import Ending
from lit_gpt.prompts.environment import Program, Span
from lit_gpt.prompts.messages import CallForm
from lit_gpt.prompts.renderer import Renderer
from lit_gpt.prompts.turns import Turn

_PROGRAM = "lit_gpt.prompts.environment:Program"
_SECONDS, _RATE = 3, 200_000
"""Seconds that a template may take for one text, and the characters for which it may take another one. Several texts
that take too long are rendered again one by one, and both together end within 10 s."""
_MEMORY, _MEMORY_RATE = 2**28, 64
"""Bytes that a template may take for one text, and those for each character that it is given."""


def limits_for(n_characters: int) -> Limits:
    """Returns what a template may take to make one text of so many characters."""
    return Limits(_SECONDS + n_characters / _RATE, _MEMORY + _MEMORY_RATE * n_characters)


def n_characters(value: Any) -> int:
    """Returns the number of characters in a template's variables; other values count as 8."""
    if isinstance(value, str):
        return len(value) + 8
    if isinstance(value, Turn):
        return len(value.text) + len(value.context) + n_characters(value.extra)
    if isinstance(value, Mapping):
        return sum(n_characters(key) + n_characters(inner) for key, inner in value.items())
    return sum(map(n_characters, value)) if isinstance(value, Sequence) else 8


class GuardedProgram:
    """A compiled chat template that runs in the process for foreign code, within limits of time and memory.

    Attributes:
        marks: whether the template marks what the assistant wrote.

    Raises:
        UserError: the text is not a Jinja program, or takes too much time or memory to compile.
    """

    def __init__(self, text: str, folder: Path) -> None:
        what, limits = f"the chat template of {folder}", limits_for(len(text))
        try:
            self._remote = Remote(what, _PROGRAM, text, folder, limits=limits, host="templates")
        except RaisedError as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"the chat template of {folder} is no Jinja program ({reason})") from e
        self.marks: bool = self._remote.call("has_marks", limits=limits, doing="when it is loaded")
        self._n = len(text)

    def run(self, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Returns the text that the template makes, and the spans it marks.

        Raises:
            LimitError: it takes too much time or memory, or ends the process.
            RaisedError: the template raises an exception.
        """
        messages = variables["messages"]
        limits = limits_for(self._n + n_characters(variables))
        doing = f"for a conversation of {len(messages):,} turn{'s' * (len(messages) != 1)}"
        text, spans = self._remote.call("run", variables, limits=limits, doing=doing)
        return text, [(start, end) for start, end in spans]


class _HostedRenderer(Renderer):
    """A renderer in the process for foreign code, for many conversations at once."""

    def __init__(
        self, folder: Path, text: str, tool_text: str, variables: Mapping[str, Any], form: CallForm, ending: Ending
    ) -> None:
        program = Program(text, folder)
        with_tools = program if tool_text == text else Program(tool_text, folder)
        super().__init__(folder, program, with_tools, variables, form=form, ending=ending)

    def exchanges_of(
        self, conversations: Sequence[tuple[Sequence[Turn], Sequence[Mapping[str, Any]]]]
    ) -> list[list[tuple[Any, ...]] | str]:
        """Returns the fields of each exchange of each conversation, or the text of the UserError that it raises."""
        found: list[list[tuple[Any, ...]] | str] = []
        for turns, tools in conversations:
            try:
                found.append([astuple(e) for e in self.exchanges(turns, tools)])
            except UserError as e:
                found.append(str(e))
        return found
