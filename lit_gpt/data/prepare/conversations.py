"""Conversations that say turn by turn who speaks: `messages` of services and chat templates, ShareGPT's layout.

What a message may carry besides its text: who is to learn it (`weight`), thoughts, calls of functions. LLaMA-Factory's
layout (https://github.com/hiyouga/LLaMA-Factory/tree/main/data) has `system` and `tools` beside `conversations`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lit_gpt.data.prepare.calls import read_calls, read_tools
from lit_gpt.data.prepare.rows import Row, RowError, conversation, verdicts
from lit_gpt.data.prepare.values import found_keys, from_json, kind, listed, require_object, text, unused_keys
from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

_CALLS = "calls"
"""A role that is none of a turn: its text is the calls of an answer, in JSON."""
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
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_response": "tool",
    "function_call": _CALLS,
    "tool_call": _CALLS,
}
_PAIRS = (("role", "content"), ("from", "value"))
"""Keys of who speaks and what is said."""
_FLAGS = ("weight", "loss", "train", "training", "trainable", "train_on_turn")
"""Keys that say whether a turn is to be learned: OpenAI's and Mistral's, ms-swift's, Axolotl's and others'."""
_SPANS = ("train_detail", "training_detail")
"""Keys that say which characters are to be learned: Axolotl's."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("images", "videos", "audios")
_SYSTEMS = ("system", "system_prompt")
_TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Conversation:
    """How the entries of a file hold a conversation. A `parse`, when called."""

    key: str
    """Of the list of messages."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name of a key -> theirs, where it is another."""
    speakers: Mapping[str, str] = field(default_factory=dict)
    """Their name of who speaks, in lower case -> ours, besides those that are known."""

    def __call__(self, entry: Any, file: str, location: str) -> list[Row]:
        where = f"{file}, {location}"
        require_object(entry, where, (self.key, *(self.names[k] for k in ("system", "tools") if k in self.names)))
        if media := next((key for key in _MEDIA if entry.get(key)), None):
            message = f"{where}: {media!r} is not empty, and only texts are taught"
            raise RowError(message, "with pictures, videos or sound")
        good = verdicts(entry, where)
        turns, unused = self._turns(entry, where)
        systems, tools = self._named("system", _SYSTEMS), self._named("tools", _TOOLS)
        for key in systems:
            turns = _with_system(turns, entry.get(key), where, key)
        functions = tuple(tool for key in tools for tool in read_tools(entry.get(key), where, key))
        unused = unused_keys(entry, (self.key, *systems, *tools, *_MEDIA, *good)) + tuple(dict.fromkeys(unused))
        return [conversation(turns, file, location, tools=functions, unused=unused)]

    def _named(self, name: str, known: tuple[str, ...]) -> tuple[str, ...]:
        """Their keys for ours."""
        return (self.names[name],) if name in self.names else known

    def _turns(self, entry: dict[str, Any], where: str) -> tuple[list[Turn], list[str]]:
        """The turns, and the keys of messages that are not read. Raises: UserError naming the message."""
        note = self._spoken(_rows_of_columns(from_json(entry[self.key], where, self.key)))
        turns: list[Turn] = []
        unused: list[str] = []
        for i, message in enumerate(listed(note, where, self.key)):
            at = f"{where}, {self.key}[{i}]"
            turn, is_calls, left = self._turn(message, at)
            unused += left
            if is_calls and turns and turns[-1].role == "assistant":
                turns[-1] = _joined(turns[-1], turn, at)
            else:
                turns.append(turn)
        return turns, unused

    def _spoken(self, note: Any) -> Any:
        """Messages of user and assistant in turns in place of a list of texts; other values as they are."""
        if not (isinstance(note, list) and note and all(isinstance(message, str) for message in note)):
            return note
        speaker, content = self.names.get("role", "role"), self.names.get("content", "content")
        return [{speaker: ("user", "assistant")[i % 2], content: message} for i, message in enumerate(note)]

    def _turn(self, message: Any, at: str) -> tuple[Turn, bool, tuple[str, ...]]:
        """A turn, whether its text was calls, and the keys that are not read. Raises: UserError."""
        speaker, note = self._pair(message, at)
        role = self._role(message[speaker], at, speaker)
        is_calls = role == _CALLS
        role = "assistant" if is_calls else role
        parts = "" if is_calls else message.get(note)
        content, left = _joined_parts(parts, at, note)
        taught, flags = self._taught(message, role, at)
        extra, keys = self._extra(message, role, at)
        if is_calls:
            extra["tool_calls"] = read_calls(message.get(note), at, note)
            content = "" if extra["tool_calls"] else None
        if content is None:
            content = _without_content(role, extra, at, note)
            extra["content"] = None  # to a template, none is not the same as an empty one
        turn = Turn(role, content, taught=taught, extra=extra)  # type: ignore[arg-type]
        prefix = f"{self.key}[]."
        unused = unused_keys(message, (speaker, note, *flags, *keys), prefix)
        return turn, is_calls, (*unused, *(prefix + key for key in left))

    def _pair(self, message: Any, at: str) -> tuple[str, str]:
        """The keys of who speaks and what is said. Raises: UserError if the message has none."""
        pair = (self.names.get("role"), self.names.get("content"))
        found = next((p for p in _PAIRS if isinstance(message, dict) and p[0] in message), _PAIRS[0])
        speaker, note = pair[0] or found[0], pair[1] or found[1]
        require_object(message, at, ())
        calls = any(key in message for key in ("tool_calls", "function_call"))
        for key in (speaker, *(() if calls else (note,))):
            if key not in message:
                raise UserError(f"{at}: no key {key!r}; found {found_keys(message)}; name yours with --columns")
        return speaker, note

    def _role(self, value: Any, at: str, key: str) -> str:
        """Who speaks. Raises: UserError if we do not know them."""
        name = text(value, at, key).strip().lower()
        if found := self.speakers.get(name) or SPEAKERS.get(name):
            return found
        raise UserError(
            f"{at}: {key!r} must be system, user, assistant or tool, found {value!r}; name yours as in "
            f'--columns "{{{self.key}: {self.key}, user: customer, assistant: agent}}"'
        )

    def _taught(self, message: dict[str, Any], role: str, at: str) -> tuple[bool, list[str]]:
        """Whether a turn is to be learned, and the keys that say it. Raises: UserError for what we cannot honour."""
        for key in _SPANS:
            if message.get(key):
                raise UserError(f"{at}: {key!r} names parts of a turn, and a turn is taught as a whole or not at all")
        keys = (*((self.names["weight"],) if "weight" in self.names else ()), *_FLAGS)
        given = {key: message[key] for key in keys if message.get(key) is not None}
        for key, value in given.items():
            if not (isinstance(value, bool | int | float) and value in (0, 1)):
                raise UserError(f"{at}: {key!r} must be 0 or 1, true or false, found {_shown(value)}")
        if role != "assistant":  # 0 is what happens to them anyway; 1 would be promised in vain
            return True, [key for key, value in given.items() if not value]
        return all(given.values()), list(given)

    def _extra(self, message: dict[str, Any], role: str, at: str) -> tuple[dict[str, Any], list[str]]:
        """What a chat template shows besides the text, and the keys that hold it. Raises: UserError."""
        extra: dict[str, Any] = {}
        used: list[str] = []
        calls = self._named("tool_calls", ("tool_calls", "function_call"))
        if role == "assistant":
            for key in self._named("reasoning_content", _THOUGHTS):
                if message.get(key) and "reasoning_content" not in extra:
                    extra["reasoning_content"] = text(message[key], at, key)
                    used.append(key)
            if found := [call for key in calls for call in read_calls(message.get(key), at, key)]:
                extra["tool_calls"] = found
            used += calls
        elif any(message.get(key) for key in calls):
            raise UserError(f"{at}: 'tool_calls' belong to an answer, found them in a turn of {role}")
        if role == "tool":
            for key in ("tool_call_id", "name"):
                if message.get(key) is not None:
                    extra[key] = text(message[key], at, key)
                    used.append(key)
        return extra, used


def _with_system(turns: list[Turn], value: Any, where: str, key: str) -> list[Turn]:
    """The turns with a system text that stands beside them. Raises: UserError if they have another one."""
    note = text(value, where, key) if value is not None else ""
    if not note.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].text.strip() != note.strip():
            raise UserError(f"{where}: {key!r} and the first message are two different system texts; keep one of them")
        return turns
    return [Turn("system", note), *turns]


def _joined(turn: Turn, calls: Turn, at: str) -> Turn:
    """An answer with the calls that follow it. Raises: UserError if one is to be learned and the other is not."""
    if turn.taught != calls.taught:
        raise UserError(f"{at}: belongs to the answer before it, of which another part is taught or not taught")
    found = [*turn.extra.get("tool_calls", ()), *calls.extra["tool_calls"]]
    return replace(turn, extra={**turn.extra, **calls.extra, "tool_calls": found})


def _rows_of_columns(value: Any) -> Any:
    """A list of messages in place of an object of lists, as Arrow's files may have it; other values as they are."""
    if not (isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values())):
        return value
    n = max(map(len, value.values()))
    return [{key: v[i] for key, v in value.items() if i < len(v) and v[i] is not None} for i in range(n)]


def _joined_parts(value: Any, where: str, key: str) -> tuple[str | None, tuple[str, ...]]:
    """A text, or the texts of a list of {"type": "text", "text": ...}, with the keys of those that are not read.

    Raises:
        UserError: neither, nor null.
    """
    if value is None:
        return None, ()
    if not isinstance(value, list):
        return text(value, where, key), ()
    for part in value:
        if not (isinstance(part, dict) and part.get("type") == "text"):
            found = f"of the type {part.get('type')!r}" if isinstance(part, dict) else kind(part)
            raise UserError(f"{where}: {key!r} must be text, found a list with other parts than texts ({found})")
    unused = [k for part in value for k in unused_keys(part, ("type", "text"), f"{key}[].")]
    return "".join(text(part.get("text"), where, key) for part in value), tuple(dict.fromkeys(unused))


def _without_content(role: str, extra: Mapping[str, Any], at: str, key: str) -> str:
    """The text of a message that has none, but calls. Raises: UserError if it has no calls either."""
    if extra.get("tool_calls"):
        return ""
    if role == "assistant":
        message = f"{at}: an answer without {key!r} (null) and without tool calls; there is nothing to teach"
        raise RowError(message, "with an answer that has neither content nor tool calls")
    raise UserError(f"{at}: {key!r} must be text, found null")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) else kind(value)
