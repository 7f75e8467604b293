"""Makes a schema of the user's own names of columns or keys, as `--columns` gives them."""

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
    """Returns the schema that the names of columns or keys stand for.

    Args:
        columns: our name -> theirs, for an instruction with its response, a conversation (`messages` or
            `conversations`, with the keys of role and content), or a question with options. A list holds their names
            alone: [instruction, context, response] or [instruction, response].

    Raises:
        UserError: the names make no schema.
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
    """Returns the schema of two or three columns that are named in order; raises UserError for any other number."""
    if len(columns) == 2:
        return Keys(*columns, system=None)
    if len(columns) != 3:
        raise UserError(f"--columns names {len(columns)}; pass [instruction, input, output] or [instruction, output]")
    return Keys(columns[0], columns[2], columns[1], system=None, needs_context=True)


def _chat(columns: Mapping[str, str], key: str) -> Conversation:
    """Returns the schema of a conversation with the user's names; raises UserError if a name is not known."""
    _require(columns, (key, *_CHAT, *_SPEAKERS), (key,), "")
    names = {name: theirs for name, theirs in columns.items() if name in _CHAT}
    speakers = {columns[ours].strip().lower(): ours for ours in _SPEAKERS if ours in columns}
    return Conversation(columns[key], names, speakers)


def _require(columns: Mapping[str, str], known: Sequence[str], needed: Sequence[str], example: str) -> None:
    """Checks that `columns` has known names only, and all that are needed; raises UserError if not."""
    for name in columns:
        if name not in known:
            others = "" if known[0] in _LISTS else "; conversations (or messages), and question with choices, go too"
            raise UserError(f"--columns: {name!r} is none of {', '.join(known)}{others}")
    for name in needed:
        if name not in columns:
            raise UserError(f"--columns: nothing is given for {name!r}, as in {example}")
