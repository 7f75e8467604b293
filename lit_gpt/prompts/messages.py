"""Turns as the messages that a chat template is given."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message has its thoughts; transformers fills the first, and `thinking`, from the others."""


def message(turn: Turn, as_text: bool = False) -> dict[str, Any]:
    """The message of a turn, with exactly the keys that it has; keys without a value are left out, as in transformers.

    A `content` of None among the turn's extra keys is a message that has none.

    Args:
        as_text: give the arguments of calls as JSON text.
    """
    text = f"{turn.text}\n\n{turn.context}" if turn.context else turn.text
    made = {"role": turn.role, "content": text, **turn.extra}
    made = {key: value for key, value in made.items() if value is not None}
    thought = next((made[key] for key in _REASONING if key in made), None)
    if thought is not None:
        made = {"thinking": thought, **made, "reasoning_content": thought}
    if as_text and made.get("tool_calls"):
        made["tool_calls"] = [_with_text(call) for call in made["tool_calls"]]
    return made


def thought_of(turn: Turn) -> str:
    """What the turn has as its thoughts beside its text; empty if it has none."""
    return next((turn.extra[key] for key in _REASONING if turn.extra.get(key) is not None), "")


def calls_of(turn: Turn) -> Sequence[Any]:
    """The calls of tools that the turn makes."""
    return turn.extra.get("tool_calls") or ()


def name_of(call: Any) -> str:
    """The name of the tool that is called; empty if the call has none."""
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def takes_text(render: Callable[[Sequence[Turn]], str]) -> bool:
    """Whether the template can show the arguments of a call as JSON text only, found by showing it one of each.

    https://huggingface.co/docs/transformers/chat_extras says that templates expect an object. Some, such as DeepSeek's,
    put the arguments between texts and fail with one.
    """

    def shows(arguments: Any) -> bool:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": arguments}}
        try:
            render([Turn("user", "a"), Turn("assistant", "", extra={"tool_calls": [call]})])
        except UserError:
            return False
        return True

    return not shows({"q": 1}) and shows('{"q": 1}')


def _with_text(call: Any) -> Any:
    """The call with its arguments as JSON text."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_text(call["function"])}
    if isinstance(call.get("arguments"), dict):
        return call | {"arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return call
