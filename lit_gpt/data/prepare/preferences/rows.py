"""Defines a preference: a conversation with the answer that is preferred, and what it is preferred to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lit_gpt.data.prepare.rows import Row, RowError
from lit_gpt.prompts.turns import Turn

EQUAL = "with equal answers"
"""Reason, in the counts, for dropping a pair whose answers are the same."""


@dataclass(frozen=True, slots=True)
class Preference(Row):
    """A row whose answer is judged: against another answer to the same prompt, or by itself.

    Only the judged answer is supervised: earlier turns of the assistant are part of the prompt.
    """

    rejected: Row | None = field(default=None, kw_only=True)
    """The same conversation with the answer that is not preferred; None where an answer is judged by itself."""
    desirable: bool = field(default=True, kw_only=True)
    """Whether the answer is a desired one."""

    @property
    def answers(self) -> tuple[Row, ...]:
        """The conversation with each of the answers, the preferred one first."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def n_prompt(self) -> int:
        """Number of turns of the prompt."""
        if self.rejected is None:
            return len(self.turns) - 1
        return _n_common(self.turns, self.rejected.turns)


def paired(chosen: Row, rejected: Row, unused: tuple[str, ...]) -> Preference:
    """Returns the preference of two conversations that begin alike and end with different answers.

    Raises:
        RowError: they have nothing in common, or one of them has no answer of its own.
    """
    n = _n_common(chosen.turns, rejected.turns)
    if not n:
        raise RowError(
            f"{chosen.where}: the two conversations do not begin with the same turn", "without common prompt"
        )
    if chosen.turns == rejected.turns:
        raise RowError(f"{chosen.where}: the two answers are equal", EQUAL, harmless=True)
    if n == min(len(chosen.turns), len(rejected.turns)):
        raise RowError(f"{chosen.where}: one conversation is the beginning of the other", "without a second answer")
    judged = [replace(row, turns=untaught(row.turns, n)) for row in (chosen, rejected)]
    return preference(judged[0], unused, rejected=judged[1])


def preference(row: Row, unused: tuple[str, ...], rejected: Row | None = None, desirable: bool = True) -> Preference:
    """Returns the preference for the answer of `row`."""
    return Preference(
        row.turns,
        tools=row.tools,
        file=row.file,
        location=row.location,
        is_chat=row.is_chat,
        unused=unused,
        rejected=rejected,
        desirable=desirable,
    )


def untaught(turns: Sequence[Turn], n: int) -> tuple[Turn, ...]:
    """Returns the turns with the first `n` as a prompt: no answer among them is supervised."""
    prompt = (replace(turn, taught=turn.role != "assistant") for turn in turns[:n])
    return (*prompt, *turns[n:])


def _n_common(a: Sequence[Turn], b: Sequence[Turn]) -> int:
    """Returns the number of turns that two conversations have in common at their beginning."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
