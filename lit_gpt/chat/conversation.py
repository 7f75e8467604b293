"""What was said in a chat, and how much of it the model still sees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.prompts import Turn


@dataclass(frozen=True)
class Said:
    """A question and its answer."""

    question: str
    answer: str
    """What the model wrote, without the texts that the prompt style puts around an answer."""
    written: str = ""
    """The text of `ids`: what the model wrote, with those texts as far as it wrote them."""
    shown: str = ""
    """The answer as the prompt style shows it to the model, with all those texts."""
    ids: tuple[int, ...] = ()
    """The tokens in which the model wrote it."""
    is_whole: bool = True
    """Whether the model ended the answer itself, rather than its length or the user."""


@dataclass
class Conversation:
    """A conversation between a user and a model."""

    system: str = ""
    """The system text; empty if there is none."""
    said: list[Said] = field(default_factory=list)
    first: int = 0
    """Index of the first question that the model still sees."""

    def turns(self, question: str | None = None, since: int | None = None) -> list[Turn]:
        """Returns the turns that the model sees, with another question at the end if one is given.

        Args:
            since: index of the first question to show; `first` if not given.
        """
        found = [Turn("system", self.system)] if self.system else []
        for s in self.said[self.first if since is None else since :]:
            found += [Turn("user", s.question), Turn("assistant", s.answer)]
        return found if question is None else [*found, Turn("user", question)]

    def ids_of(self, shown: str) -> Sequence[int] | None:
        """Returns the tokens in which the model wrote the latest answer that is shown so; None if it wrote none."""
        return next((s.ids for s in reversed(self.said) if s.ids and s.shown == shown), None)

    def add(self, said: Said) -> None:
        """Adds a question and its answer."""
        self.said.append(said)

    def take_back(self) -> Said | None:
        """Removes the last question and its answer, and returns them; None if there is none."""
        if not self.said:
            return None
        taken = self.said.pop()
        self.first = min(self.first, max(0, len(self.said) - 1))
        return taken

    def clear(self) -> None:
        """Forgets all questions and answers; the system text stays."""
        self.said, self.first = [], 0

    def row(self) -> dict[str, Any]:
        """Returns the conversation as a training row; answers that did not end or say nothing carry no loss."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for s in self.said:
            answer: dict[str, Any] = {"role": "assistant", "content": s.answer.strip()}
            taught = s.is_whole and bool(answer["content"])
            messages += [{"role": "user", "content": s.question}, answer if taught else answer | {"weight": 0}]
        return {"messages": messages}
