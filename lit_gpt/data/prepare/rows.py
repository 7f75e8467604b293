"""Defines a row: one conversation before tokenization, with its location in the file that it came from."""

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
"""Role -> roles that the next turn may have; results of tools may take several turns, one a call."""

_VERDICTS = ("label", "kto_tag")
"""Keys that say whether an answer is a desired one, in data sets for KTO (https://arxiv.org/abs/2402.01306)."""


class RowError(UserError):
    """An error in a row, with a short `reason` under which such rows are counted where they are dropped.

    Args:
        harmless: such rows are counted and dropped, whatever --bad_rows says.
    """

    def __init__(self, message: str, reason: str, harmless: bool = False) -> None:
        super().__init__(message)
        self.reason, self.harmless = reason, harmless


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: perhaps a system text, then turns of user and assistant. Equality ignores its location."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False, kw_only=True)
    """Schemas of the tools that the assistant may call, as chat templates take them."""
    file: str = field(default="", compare=False)
    location: str = field(default="", compare=False)
    """Entry or line in the file, such as "line 12"."""
    is_chat: bool = field(default=False, compare=False, kw_only=True)
    """Whether the file gives a role for each turn, as conversations do; not so with an instruction and its response."""
    unused: tuple[str, ...] = field(default=(), compare=False, kw_only=True)
    """Keys of the entry that hold a value and are not read, such as `source` or `messages[].id`."""

    @classmethod
    def single(cls, instruction: str, context: str, response: str, file: str = "", location: str = "") -> "Row":
        """Returns a row of one instruction and its response."""
        return cls((Turn("user", instruction, context), Turn("assistant", response)), file, location)

    @property
    def where(self) -> str:
        """File and location, for error messages."""
        return ", ".join(filter(None, (self.file, self.location)))

    @property
    def system(self) -> str:
        """The system text, or an empty one."""
        return self.turns[0].text if self.turns and self.turns[0].role == "system" else ""

    @property
    def instruction(self) -> str:
        """The first text of the user."""
        return self.first("user").text

    @property
    def context(self) -> str:
        """The context that goes with `instruction`; may be empty."""
        return self.first("user").context

    @property
    def response(self) -> str:
        """The last text of the assistant; empty if there is none."""
        return next((t.text for t in reversed(self.turns) if t.role == "assistant"), "")

    def first(self, role: str) -> Turn:
        """Returns the first turn of a role; an empty one of the user if there is none."""
        return next((t for t in self.turns if t.role == role), Turn("user", ""))


def conversation(
    turns: Sequence[Turn],
    file: str,
    location: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    unused: tuple[str, ...] = (),
) -> Row:
    """Returns a row of the turns of a conversation, after checking the order of their roles.

    Raises:
        UserError: there is no turn besides the system text, or the roles are out of order, naming the first such turn.
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
    """Returns the keys of an entry that say that its answer is a desired one.

    Raises:
        RowError: a key says that the answer is undesired.
    """
    found = [key for key in _VERDICTS if key in entry and isinstance(entry[key], bool | str)]
    if not found:
        return ()
    labels = {key: str(entry[key]).strip().lower() for key in found}
    if bad := next((key for key, verdict in labels.items() if verdict == "false"), None):  # a table's cells are texts
        message = f"{where}: {bad!r} false says that the answer is a bad one, not to be learned"
        raise RowError(message, f"with {bad} false")
    return tuple(key for key, verdict in labels.items() if verdict == "true")
