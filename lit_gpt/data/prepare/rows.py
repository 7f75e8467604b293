"""A row: one conversation before tokenization, and the place in the file that it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

_MAY_FOLLOW = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> roles of the next turn; what a tool says may come in several turns, one a call."""

_VERDICTS = ("label", "kto_tag")
"""Keys that say whether an answer is a good one, in sets for KTO."""


class RowError(UserError):
    """What is wrong with a row, and in few words why rows of its kind are left out where they are dropped."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """A system text or none, then user and assistant in turns. Rows that say the same are equal, wherever from."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False, kw_only=True)
    """Schemas of the functions that the assistant may call, as chat templates take them."""
    file: str = field(default="", compare=False)
    location: str = field(default="", compare=False)
    """Entry or line in the file, as a person would look it up."""
    is_chat: bool = field(default=False, compare=False, kw_only=True)
    """Whether the file says turn by turn who speaks, as conversations do, and not an instruction and its answer."""
    unused: tuple[str, ...] = field(default=(), compare=False, kw_only=True)
    """Keys of the entry that hold something and are not read, such as `source` or `messages[].id`."""

    @classmethod
    def single(cls, instruction: str, context: str, response: str, file: str = "", location: str = "") -> "Row":
        """One question and one answer."""
        return cls((Turn("user", instruction, context), Turn("assistant", response)), file, location)

    @property
    def where(self) -> str:
        return ", ".join(filter(None, (self.file, self.location)))

    @property
    def system(self) -> str:
        """The system text, or an empty one."""
        return self.turns[0].text if self.turns and self.turns[0].role == "system" else ""

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


def conversation(
    turns: Sequence[Turn],
    file: str,
    location: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    unused: tuple[str, ...] = (),
) -> Row:
    """The turns as a row.

    Raises:
        UserError: roles out of order, naming the first turn that is.
    """
    n_system = int(bool(turns) and turns[0].role == "system")
    before = ""
    for i, turn in enumerate(turns[n_system:]):
        if turn.role not in _MAY_FOLLOW[before]:
            expected = " or ".join(_MAY_FOLLOW[before])
            message = f"{file}, {location}, turn {i + n_system + 1}: expected {expected}, found {turn.role}"
            raise RowError(message, "with roles out of order")
        before = turn.role
    if len(turns) == n_system:
        raise UserError(f"{file}, {location}: expected at least one turn of a user, found none")
    return Row(tuple(turns), tools=tuple(tools), file=file, location=location, is_chat=True, unused=unused)


def verdicts(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The keys of an entry that say that its answer is a good one.

    Raises:
        RowError: one says that it is a bad one.
    """
    note = {key: str(entry[key]).strip().lower() for key in _VERDICTS if isinstance(entry.get(key), bool | str)}
    if bad := next((key for key, verdict in note.items() if verdict == "false"), None):  # a table's cells are texts
        message = f"{where}: {bad!r} false says that the answer is a bad one, not to be learned"
        raise RowError(message, f"with {bad} false")
    return tuple(key for key, verdict in note.items() if verdict == "true")
