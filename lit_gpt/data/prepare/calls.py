"""Reads tool calls and tool schemas into the form that chat templates take.

That form is described at https://huggingface.co/docs/transformers/chat_extras: `{"type": "function", "function":
{"name": ..., "arguments": {...}}}`, with the arguments as an object. OpenAI's files have the arguments as a JSON text;
it is parsed here, since templates that write `arguments | tojson` would quote it a second time.
"""

from collections.abc import Mapping
from typing import Any

from lit_gpt.data.prepare.values import found_keys, from_json, kind, listed, require_object, text
from lit_gpt.errors import UserError


def read_calls(value: Any, where: str, key: str) -> list[dict[str, Any]]:
    """Returns the tool calls of an answer, given as a list or a single call, perhaps as JSON text.

    Raises:
        UserError: one is no tool call; it is named.
    """
    calls = from_json(value, where, key)
    if calls is None:
        return []
    calls = [calls] if isinstance(calls, dict) else listed(calls, where, key)
    return [_call(call, f"{where}, {key}[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    """Returns one tool call in the templates' form; raises UserError if it is none."""
    require_object(call, where, ())
    inner = call.get("function") if isinstance(call.get("function"), Mapping) else call
    if inner.get("name") is None:
        raise UserError(f"{where}: expected a call with 'name' and 'arguments', found {found_keys(inner)}")
    name = text(inner["name"], where, "name")
    given = next((inner[k] for k in ("arguments", "parameters") if inner.get(k) is not None), {})
    arguments = from_json(given, where, "arguments")
    if not isinstance(arguments, dict | None):
        raise UserError(f"{where}: 'arguments' of {name!r} must be an object, found {kind(arguments)}")
    identity = {"id": text(call["id"], where, "id")} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def read_tools(value: Any, where: str, key: str) -> tuple[dict[str, Any], ...]:
    """Returns the schemas of the tools that may be called, given as a list, perhaps as JSON text.

    The schemas may have `{"type": "function", "function": ...}` around them or not.

    Raises:
        UserError: one is no schema of a tool; it is named.
    """
    tools = from_json(value, where, key)
    if tools is None:
        return ()
    tools = [tools] if isinstance(tools, dict) else listed(tools, where, key)
    return tuple(_tool(from_json(tool, where, key), f"{where}, {key}[{i}]") for i, tool in enumerate(tools))


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """Returns one tool schema in the templates' form; raises UserError if it is none."""
    require_object(tool, where, ())
    inner = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
    if not isinstance(inner.get("name"), str):
        raise UserError(f"{where}: expected the schema of a function with a 'name', found {found_keys(inner)}")
    if inner is not tool:
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
