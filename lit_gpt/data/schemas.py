"""What the entries of known data sets look like: each `parse` turns one entry into rows, or names what is wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.data.rows import Row, conversation
from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

Parse = Callable[[Any, str, str], list[Row]]
"""(entry, file, place) -> rows. Raises UserError naming file, place and key."""
SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Keys:
    """Names that single-turn entries have for instruction, context and response. A `parse`, when called."""

    instruction: str
    response: str
    context: str | None = None
    system: str | None = None
    needs_context: bool = False
    """The context's key must be there."""

    @property
    def names(self) -> tuple[str | None, ...]:
        return self.instruction, self.response, self.context, self.system

    @property
    def needed(self) -> tuple[str, ...]:
        """Keys that each entry must have."""
        context = (self.context,) if self.needs_context and self.context else ()
        return self.instruction, self.response, *context

    def require_columns(self, entry: Mapping[str, Any], file: Path) -> None:
        """Raises: UserError if the header of a table, the keys of any of its rows, lacks a key."""
        if missing := [key for key in self.needed if key not in entry]:
            raise UserError(
                f"{file}: no column {' and no column '.join(map(repr, missing))}; found {found_keys(entry)}; "
                "name yours with --columns of prepare_csv.py"
            )

    def __call__(self, entry: Any, file: str, place: str) -> list[Row]:
        where = f"{file}, {place}"
        require_object(entry, where, self.needed)
        instruction, response = (text(entry[key], where, key) for key in (self.instruction, self.response))
        context = optional(entry, where, self.context)
        turns = (Turn("user", instruction, context), Turn("assistant", response))
        if system := optional(entry, where, self.system):
            turns = (Turn("system", system), *turns)
        return [Row(turns, file, place)]


alpaca = Keys("instruction", "output", "input")
"""https://github.com/tatsu-lab/stanford_alpaca#data-release; `input` may be absent."""
dolly = Keys("instruction", "response", "context")
"""https://huggingface.co/datasets/databricks/databricks-dolly-15k; `context` may be absent."""
completion = Keys("prompt", "completion")
longform = Keys("input", "output")
"""https://github.com/akoksal/LongForm"""
flan = Keys("inputs", "targets")
"""https://huggingface.co/datasets/Muennighoff/flan"""


def alpaca_libre(entry: Any, file: str, place: str) -> list[Row]:
    """Alpaca's schema, where a missing input is written `<noinput>`."""
    (row,) = alpaca(entry, file, place)
    if row.context.strip().lower() == "<noinput>":
        row = Row.single(row.instruction, "", row.response, file, place)
    return [row]


def self_instruct(entry: Any, file: str, place: str) -> list[Row]:
    """An instruction and several instances of it; https://github.com/yizhongw/self-instruct."""
    where = f"{file}, {place}"
    require_object(entry, where, ("instruction", "instances"))
    instruction, instances = entry["instruction"], listed(entry["instances"], where, "instances")
    single = Keys("instruction", "output", "input")
    return [
        row
        for i, instance in enumerate(instances, 1)
        for row in single(
            {"instruction": instruction, **require_object(instance, f"{where}, instance {i}", ("output",))},
            file,
            f"{place}, instance {i}",
        )
    ]


def messages(entry: Any, file: str, place: str) -> list[Row]:
    """`messages`: a list of role and content, as chat templates and most services have it."""
    return [from_turns(entry, "messages", "role", "content", file, place)]


def sharegpt(entry: Any, file: str, place: str) -> list[Row]:
    """`conversations`: a list of from (human, gpt, system) and value."""
    return [from_turns(entry, "conversations", "from", "value", file, place)]


def lima(entry: Any, file: str, place: str) -> list[Row]:
    """`conversations`: a list of texts, user and assistant in turns; https://huggingface.co/datasets/GAIR/lima."""
    where = f"{file}, {place}"
    require_object(entry, where, ("conversations",))
    said = listed(entry["conversations"], where, "conversations")
    turns = [
        Turn(("user", "assistant")[i % 2], text(s, where, f"conversations[{i}]"))  # type: ignore[arg-type]
        for i, s in enumerate(said)
    ]
    return [conversation(turns, file, place)]


def lima_first(entry: Any, file: str, place: str) -> list[Row]:
    """The first question and answer of LIMA's conversations."""
    (row,) = lima(entry, file, place)
    return [Row(row.turns[:2], file, place)]


def conversations(entry: Any, file: str, place: str) -> list[Row]:
    """Texts, or objects with from and value: LIMA's or ShareGPT's."""
    said = entry["conversations"]
    return (lima if isinstance(said, list) and said and isinstance(said[0], str) else sharegpt)(entry, file, place)


def from_turns(entry: Any, key: str, speaker: str, said: str, file: str, place: str) -> Row:
    """The conversation in `entry[key]`. Raises: UserError naming the turn."""
    where = f"{file}, {place}"
    require_object(entry, where, (key,))
    turns = []
    for i, turn in enumerate(listed(entry[key], where, key)):
        at = f"{where}, {key}[{i}]"
        require_object(turn, at, (speaker, said))
        role = text(turn[speaker], at, speaker)
        if role.strip().lower() not in SPEAKERS:
            raise UserError(f"{at}: {speaker!r} must be system, user or assistant, found {role!r}")
        turns.append(Turn(SPEAKERS[role.strip().lower()], joined_parts(turn[said], at, said)))  # type: ignore[arg-type]
    return conversation(turns, file, place)


def joined_parts(value: Any, where: str, key: str) -> str:
    """A text, or the texts of a list of {"type": "text", "text": ...}. Raises: UserError."""
    if not isinstance(value, list):
        return text(value, where, key)
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text"):
            raise UserError(f"{where}: {key!r} must be text, found a list with other parts than texts")
    return "".join(text(part.get("text"), where, key) for part in value)


@dataclass(frozen=True)
class Trees:
    """Conversation trees of OpenAssistant's export; https://huggingface.co/datasets/OpenAssistant/oasst1.

    Good are messages that were neither deleted nor refused in review. A path ends with an answer.
    """

    paths: str = "best"
    """best: from each message on with the best-ranked reply. all: every path of good messages."""
    language: str | None = None
    """Trees in this language only (`en`, `de` ...); None takes all."""

    def __call__(self, entry: Any, file: str, place: str) -> list[Row]:
        where = f"{file}, {place}"
        require_object(entry, where, ("prompt",))
        root = require_object(entry["prompt"], f"{where}, prompt", ("text", "role"))
        if self.language is not None and root.get("lang") != self.language:
            return []
        rows = {}
        for path in self.walk(root, f"{where}, prompt"):
            while path and path[-1].role == "user":
                path = path[:-1]
            if path:
                rows[conversation(path, file, place)] = None  # two questions without answers leave the same path
        return list(rows)

    def walk(self, node: dict[str, Any], where: str) -> Iterator[tuple[Turn, ...]]:
        """Paths from here down."""
        require_object(node, where, ("text", "role"))
        role = SPEAKERS.get(node["role"]) if isinstance(node["role"], str) else None
        if role not in ("user", "assistant"):
            raise UserError(f"{where}: 'role' must be prompter or assistant, found {node['role']!r}")
        if node.get("deleted") or node.get("review_result") is False:
            return
        turn = Turn(role, text(node["text"], where, "text"))  # type: ignore[arg-type]
        replies = listed(node.get("replies") or [], where, "replies")
        for i, reply in enumerate(replies):
            require_object(reply, f"{where}.replies[{i}]", ("text", "role"))
        if self.paths == "best":
            replies = sorted(replies, key=lambda r: r["rank"] if isinstance(r.get("rank"), int) else len(replies))
        ended = True
        for i, reply in enumerate(replies):
            for path in self.walk(reply, f"{where}.replies[{i}]"):
                ended = False
                yield (turn, *path)
            if self.paths == "best" and not ended:
                return
        if ended:
            yield (turn,)


SCHEMAS: list[tuple[tuple[str, ...], Parse]] = [
    (("conversations",), conversations),
    (("messages",), messages),
    (("prompt", "message_tree_id"), Trees()),
    (("instruction", "instances"), self_instruct),
    (("instruction", "output"), alpaca),
    (("instruction", "response"), dolly),
    (("prompt", "completion"), completion),
    (("prompt", "response"), Keys("prompt", "response")),
    (("inputs", "targets"), flan),
    (("input", "output"), longform),
]
"""Keys that tell a schema -> how it is parsed; the first that fits."""


def recognise(entry: Any, where: str) -> Parse:
    """The schema of an entry. Raises: UserError if it is of none that we know."""
    known = "; ".join("+".join(keys) for keys, _ in SCHEMAS)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object with {known}, found {kind(entry)}")
    for keys, parse in SCHEMAS:
        if all(key in entry for key in keys):
            return parse
    raise UserError(f"{where}: expected the keys {known}, found {found_keys(entry)}; name yours with --columns")


def table(columns: Sequence[str]) -> Keys:
    """A schema by the names of its columns: instruction, context and response, or instruction and response.

    Raises:
        UserError: neither two nor three names.
    """
    if len(columns) == 2:
        return Keys(*columns)
    if len(columns) != 3:
        raise UserError(f"--columns names {len(columns)}; pass [instruction, input, output] or [instruction, output]")
    return Keys(columns[0], columns[2], columns[1], needs_context=True)


def mapped(columns: Mapping[str, str]) -> Keys:
    """A schema by names that the user gives: {"instruction": theirs, "response": theirs, "context": theirs ...}.

    Raises:
        UserError: a name that we do not have, or no instruction or response.
    """
    for name in columns:
        if name not in ("instruction", "context", "response", "system"):
            raise UserError(f"--columns: {name!r} is none of instruction, context, response, system")
    for name in ("instruction", "response"):
        if name not in columns:
            raise UserError(
                f"--columns: nothing is given for {name!r}, as in {{instruction: question, response: answer}}"
            )
    return Keys(**columns, needs_context="context" in columns)


def require_object(value: Any, where: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """`value` itself. Raises: UserError unless it is an object that has the keys."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with {' and '.join(needed)}, found {kind(value)}")
    for key in needed:
        if key not in value:
            raise UserError(f"{where}: no key {key!r}; found {found_keys(value)}")
    return value


def listed(value: Any, where: str, key: str) -> list[Any]:
    """`value` itself. Raises: UserError unless it is a list."""
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} must be a list, found {kind(value)}")
    return value


def optional(entry: dict[str, Any], where: str, key: str | None) -> str:
    """The text of a key that may be absent or null. Raises: UserError if it is something else."""
    return text(entry[key], where, key) if key is not None and entry.get(key) is not None else ""


def text(value: Any, where: str, key: str) -> str:
    """`value` itself. Raises: UserError unless it is text that UTF-8 can write."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, found {kind(value)}")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as e:
        half = f"\\u{ord(value[e.start]):04x}"
        raise UserError(f"{where}: {key!r} has half a character ({half}) at {e.start + 1}; write it whole") from e
    return value


def found_keys(entry: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(entry)[:12])) or "none"


def kind(value: Any) -> str:
    """`value` as a person would name it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value}")
