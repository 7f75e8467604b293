"""A row: one conversation before tokenization, and the place in the file that it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn


@dataclass(frozen=True, slots=True)
class Row:
    """A system text or none, then user and assistant in turns. Rows that say the same are equal, wherever from."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False, kw_only=True)
    """Schemas of the functions that the assistant may call, as chat templates take them."""
    file: str = field(default="", compare=False)
    place: str = field(default="", compare=False)
    """Entry or line in the file, as a person would look it up."""

    @classmethod
    def single(cls, instruction: str, context: str, response: str, file: str = "", place: str = "") -> "Row":
        """One question and one answer."""
        return cls((Turn("user", instruction, context), Turn("assistant", response)), file, place)

    @property
    def where(self) -> str:
        return ", ".join(filter(None, (self.file, self.place)))

    @property
    def instruction(self) -> str:
        """The user's text; of several, the first."""
        return self.first("user").text

    @property
    def context(self) -> str:
        """What `instruction` refers to; may be empty."""
        return self.first("user").context

    @property
    def response(self) -> str:
        """The assistant's text; of several, the last. Empty if there is none."""
        return next((t.text for t in reversed(self.turns) if t.role == "assistant"), "")

    def first(self, role: str) -> Turn:
        return next((t for t in self.turns if t.role == role), Turn("user", ""))


def conversation(turns: Sequence[Turn], file: str, place: str) -> Row:
    """The turns as a row.

    Raises:
        UserError: roles that do not alternate, naming the first turn that is out of order.
    """
    n_system = int(bool(turns) and turns[0].role == "system")
    for i, turn in enumerate(turns[n_system:]):
        expected = ("user", "assistant")[i % 2]
        if turn.role != expected:
            raise UserError(f"{file}, {place}, turn {i + n_system + 1}: expected {expected}, found {turn.role}")
    if len(turns) == n_system:
        raise UserError(f"{file}, {place}: expected at least one turn of a user, found none")
    return Row(tuple(turns), file, place)
