"""Keys under the user's own names: what `--columns` says, as a schema."""

from collections.abc import Mapping, Sequence

from lit_gpt.data.prepare.choices import Choice
from lit_gpt.data.prepare.conversations import Conversation
from lit_gpt.data.prepare.schemas import Keys, Parse
from lit_gpt.errors import UserError

_SINGLE = ("instruction", "context", "response", "system", "history")
_CHOICE = ("question", "choices", "answer")
_CHAT = ("role", "content", "system", "tools", "weight", "reasoning_content", "tool_calls")
_LISTS = ("messages", "conversations")
_SPEAKERS = ("user", "assistant", "tool")


def by_columns(columns: Mapping[str, str] | Sequence[str]) -> Parse:
    """The schema that names of columns or keys stand for.

    Args:
        columns: our name -> theirs: of an instruction with its response, of a conversation (`messages` or
            `conversations`, with who speaks and what they say), or of a question with options; or their names alone,
            of instruction, context and response, or of instruction and response.

    Raises:
        UserError: names that make no schema.
    """
    if not isinstance(columns, Mapping):
        return _table(columns)
    if lists := [name for name in _LISTS if name in columns]:
        return _chat(columns, lists[0])
    if "choices" in columns:
        _require(columns, _CHOICE, _CHOICE, "{question: stem, choices: options, answer: label}")
        return Choice(**columns)
    _require(columns, _SINGLE, ("instruction", "response"), "{instruction: question, response: answer}")
    return Keys(**{"system": None, **columns}, needs_context="context" in columns)


def _table(columns: Sequence[str]) -> Keys:
    """Instruction, context and response, or instruction and response. Raises: UserError for neither two nor three."""
    if len(columns) == 2:
        return Keys(*columns, system=None)
    if len(columns) != 3:
        raise UserError(f"--columns names {len(columns)}; pass [instruction, input, output] or [instruction, output]")
    return Keys(columns[0], columns[2], columns[1], system=None, needs_context=True)


def _chat(columns: Mapping[str, str], key: str) -> Conversation:
    """A conversation under the key that `columns` has for it. Raises: UserError."""
    _require(columns, (key, *_CHAT, *_SPEAKERS), (key,), "")
    names = {name: theirs for name, theirs in columns.items() if name in _CHAT}
    speakers = {columns[ours].strip().lower(): ours for ours in _SPEAKERS if ours in columns}
    return Conversation(columns[key], names, speakers)


def _require(columns: Mapping[str, str], known: Sequence[str], needed: Sequence[str], example: str) -> None:
    """Raises: UserError if `columns` has a name that is not known, or lacks one that is needed."""
    for name in columns:
        if name not in known:
            others = "" if known[0] in _LISTS else "; conversations (or messages), and question with choices, go too"
            raise UserError(f"--columns: {name!r} is none of {', '.join(known)}{others}")
    for name in needed:
        if name not in columns:
            raise UserError(f"--columns: nothing is given for {name!r}, as in {example}")
