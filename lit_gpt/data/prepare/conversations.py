"""Parses conversations with a role for each turn: OpenAI's `messages`, which chat templates take too, and ShareGPT's.

Besides its text, a message may carry whether it is supervised (`weight`), reasoning and tool calls. LLaMA-Factory's
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
"""Pseudo-role of a message whose text is tool calls in JSON; they belong to an answer of the assistant."""
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
"""Name of a speaker, in lower case -> role."""
_PAIRS = (("role", "content"), ("from", "value"))
"""Pairs of keys for the role and the text of a message."""
_FLAGS = ("weight", "loss", "train", "training", "trainable", "train_on_turn")
"""Keys that say whether a turn is supervised: OpenAI's and Mistral's, ms-swift's, Axolotl's and others'."""
_SPANS = ("train_detail", "training_detail")
"""Keys that say which characters of a turn are supervised (Axolotl)."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("images", "videos", "audios")
_SYSTEMS = ("system", "system_prompt")
_TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Conversation:
    """The schema of conversations, by the names of their keys; a `Parse` when called."""

    key: str
    """Key of the list of messages."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name of a key -> theirs, where it differs."""
    speakers: Mapping[str, str] = field(default_factory=dict)
    """Their name of a speaker, in lower case -> role, in addition to SPEAKERS."""

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
        """Returns the keys to look for: the user's own name if there is one, else the known ones."""
        return (self.names[name],) if name in self.names else known

    def _turns(self, entry: dict[str, Any], where: str) -> tuple[list[Turn], list[str]]:
        """Returns the turns, and the keys of messages that are not read; raises UserError naming the bad message."""
        messages = self._with_roles(_rows_of_columns(from_json(entry[self.key], where, self.key)))
        turns: list[Turn] = []
        unused: list[str] = []
        for i, message in enumerate(listed(messages, where, self.key)):
            at = f"{where}, {self.key}[{i}]"
            turn, is_calls, left = self._turn(message, at)
            unused += left
            if is_calls and turns and turns[-1].role == "assistant":
                turns[-1] = _joined(turns[-1], turn, at)
            else:
                turns.append(turn)
        return turns, unused

    def _with_roles(self, messages: Any) -> Any:
        """Turns a list of texts into messages of user and assistant in turns; returns other values as they are."""
        if not (isinstance(messages, list) and messages and all(isinstance(message, str) for message in messages)):
            return messages
        speaker, content = self.names.get("role", "role"), self.names.get("content", "content")
        return [{speaker: ("user", "assistant")[i % 2], content: message} for i, message in enumerate(messages)]

    def _turn(self, message: Any, at: str) -> tuple[Turn, bool, tuple[str, ...]]:
        """Returns a turn, whether its text was tool calls, and unused keys; raises UserError if it is no message."""
        role_key, text_key = self._pair(message, at)
        role = self._role(message[role_key], at, role_key)
        is_calls = role == _CALLS
        role = "assistant" if is_calls else role
        parts = "" if is_calls else message.get(text_key)
        content, left = _joined_parts(parts, at, text_key)
        taught, flags = self._taught(message, role, at)
        extra, keys = self._extra(message, role, at)
        if is_calls:
            extra["tool_calls"] = read_calls(message.get(text_key), at, text_key)
            content = "" if extra["tool_calls"] else None
        if content is None:
            content = _without_content(role, extra, at, text_key)
            extra["content"] = None  # to a template, null is not the same as an empty text
        turn = Turn(role, content, taught=taught, extra=extra)  # type: ignore[arg-type]
        prefix = f"{self.key}[]."
        unused = unused_keys(message, (role_key, text_key, *flags, *keys), prefix)
        return turn, is_calls, (*unused, *(prefix + key for key in left))

    def _pair(self, message: Any, at: str) -> tuple[str, str]:
        """Returns the keys of role and text; raises UserError if the message lacks them."""
        pair = (self.names.get("role"), self.names.get("content"))
        found = next((p for p in _PAIRS if isinstance(message, dict) and p[0] in message), _PAIRS[0])
        role_key, text_key = pair[0] or found[0], pair[1] or found[1]
        require_object(message, at, ())
        calls = any(key in message for key in ("tool_calls", "function_call"))
        for key in (role_key, *(() if calls else (text_key,))):
            if key not in message:
                raise UserError(f"{at}: no key {key!r}; found {found_keys(message)}; name yours with --columns")
        return role_key, text_key

    def _role(self, value: Any, at: str, key: str) -> str:
        """Returns the role of a speaker; raises UserError if it is not known."""
        name = text(value, at, key).strip().lower()
        if found := self.speakers.get(name) or SPEAKERS.get(name):
            return found
        raise UserError(
            f"{at}: {key!r} must be system, user, assistant or tool, found {value!r}; name yours as in "
            f'--columns "{{{self.key}: {self.key}, user: customer, assistant: agent}}"'
        )

    def _taught(self, message: dict[str, Any], role: str, at: str) -> tuple[bool, list[str]]:
        """Returns whether a turn is supervised, and by which keys; raises UserError for what is not supported."""
        for key in _SPANS:
            if message.get(key):
                raise UserError(f"{at}: {key!r} names parts of a turn, and a turn is taught as a whole or not at all")
        keys = (*((self.names["weight"],) if "weight" in self.names else ()), *_FLAGS)
        given = {key: message[key] for key in keys if message.get(key) is not None}
        for key, value in given.items():
            if not (isinstance(value, bool | int | float) and value in (0, 1)):
                raise UserError(f"{at}: {key!r} must be 0 or 1, true or false, found {_shown(value)}")
        if role != "assistant":  # they are never supervised: 0 holds anyway, 1 stays among the unused keys
            return True, [key for key, value in given.items() if not value]
        return all(given.values()), list(given)

    def _extra(self, message: dict[str, Any], role: str, at: str) -> tuple[dict[str, Any], list[str]]:
        """Returns what a chat template shows besides the text, and its keys; raises UserError if it is malformed."""
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
    """Returns the turns with a system text from a key of its own; raises UserError if they have a different one."""
    system = text(value, where, key) if value is not None else ""
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].text.strip() != system.strip():
            raise UserError(f"{where}: {key!r} and the first message are two different system texts; keep one of them")
        return turns
    return [Turn("system", system), *turns]


def _joined(turn: Turn, calls: Turn, at: str) -> Turn:
    """Returns an answer with the tool calls that follow it; raises UserError if only one of the two is supervised."""
    if turn.taught != calls.taught:
        raise UserError(f"{at}: belongs to the answer before it, of which another part is taught or not taught")
    found = [*turn.extra.get("tool_calls", ()), *calls.extra["tool_calls"]]
    return replace(turn, extra={**turn.extra, **calls.extra, "tool_calls": found})


def _rows_of_columns(value: Any) -> Any:
    """Turns an object of lists, as in Arrow files, into a list of messages; returns other values as they are."""
    if not (isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values())):
        return value
    n = max(map(len, value.values()))
    return [{key: v[i] for key, v in value.items() if i < len(v) and v[i] is not None} for i in range(n)]


def _joined_parts(value: Any, where: str, key: str) -> tuple[str | None, tuple[str, ...]]:
    """Returns the text of a content, joined if it is a list of text parts, and the keys of the parts that are not read.

    A part is {"type": "text", "text": ...}; a content that is null has the text None.

    Raises:
        UserError: the content is neither text, such a list, nor null.
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
    """Returns an empty text for a message with tool calls only; raises UserError if it has no calls either."""
    if extra.get("tool_calls"):
        return ""
    if role == "assistant":
        message = f"{at}: an answer without {key!r} (null) and without tool calls; there is nothing to teach"
        raise RowError(message, "with an answer that has neither content nor tool calls")
    raise UserError(f"{at}: {key!r} must be text, found null")


def _shown(value: Any) -> str:
    """Returns a value as a message quotes it."""
    return repr(value) if isinstance(value, bool | int | float | str) else kind(value)
