"""Turns as the message dictionaries that a chat template is given."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError
from lit_gpt.prompts.turns import Turn

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message holds its thoughts; transformers copies them to the first, and to `thinking`."""


@dataclass(frozen=True)
class CallForm:
    """The form in which a template takes tool calls.

    https://huggingface.co/docs/transformers/chat_extras says that templates expect arguments as an object. DeepSeek's
    templates concatenate them with texts, so they fail on an object, and they show calls only where the content is
    null, which transformers 5 drops.
    """

    as_text: bool = False
    """Whether arguments are passed as JSON text."""
    with_null: bool = False
    """Whether an answer that calls tools and has no text gets null as its content, not an empty text."""


def message(turn: Turn, form: CallForm = CallForm()) -> dict[str, Any]:
    """Returns a turn as a message with the keys that it has; keys without a value are left out, as in transformers.

    Args:
        form: the form in which the template takes tool calls.
    """
    text = "\n\n".join(filter(str.strip, (turn.text, turn.context))) if turn.context else turn.text
    made = {"role": turn.role, "content": text, **turn.extra}
    made = {key: value for key, value in made.items() if value is not None}
    thought = next((made[key] for key in _REASONING if key in made), None)
    if thought is not None:
        made = {"thinking": thought, **made, "reasoning_content": thought}
    if form.as_text and made.get("tool_calls"):
        made["tool_calls"] = [_with_text(call) for call in made["tool_calls"]]
    if form.with_null and made.get("tool_calls") and not text:
        made["content"] = None
    return made


def thought_of(turn: Turn) -> str:
    """Returns the turn's thoughts, which it holds beside its text; empty if it has none."""
    return next((turn.extra[key] for key in _REASONING if turn.extra.get(key) is not None), "")


def calls_of(turn: Turn) -> Sequence[Any]:
    """Returns the tool calls of the turn."""
    return turn.extra.get("tool_calls") or ()


def name_of(call: Any) -> str:
    """Returns the name of the tool that is called; empty if the call has none."""
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def find_form(render: Callable[[Sequence[Turn], CallForm], str]) -> CallForm:
    """Returns the first form in which the template shows a tool call; the usual form if none works."""
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": {"q": 1}}}
    turns = [Turn("user", "a"), Turn("assistant", "", extra={"tool_calls": [call]})]
    for with_null in (False, True):
        for as_text in (False, True):
            form = CallForm(as_text, with_null)
            try:
                if "probe" in render(turns, form):
                    return form
            except LimitError:
                raise
            except UserError:  # the template fails on this form
                pass
    return CallForm()


def _with_text(call: Any) -> Any:
    """Returns the call with its arguments as JSON text."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_text(call["function"])}
    if isinstance(call.get("arguments"), dict):
        return call | {"arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return call
