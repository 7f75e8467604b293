"""Calls of functions and the functions themselves, in the form in which chat templates take them.

That is the one of https://huggingface.co/docs/transformers/chat_extras: `{"type": "function", "function": {"name": ...,
"arguments": {...}}}`, with the arguments as an object. OpenAI's files have them as a JSON text, which templates that
write `arguments | tojson` would put in quotes a second time, so they are parsed here.
"""

from collections.abc import Mapping
from typing import Any

from lit_gpt.data.prepare.values import found_keys, from_json, kind, listed, require_object, text
from lit_gpt.errors import UserError


def read_calls(value: Any, where: str, key: str) -> list[dict[str, Any]]:
    """The calls of an answer: a list of them or a single one, perhaps as JSON text.

    Raises:
        UserError: naming the call that is none.
    """
    calls = from_json(value, where, key)
    if calls is None:
        return []
    calls = [calls] if isinstance(calls, dict) else listed(calls, where, key)
    return [_call(call, f"{where}, {key}[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    """One call. Raises: UserError."""
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
    """The schemas of the functions that may be called: a list, perhaps as JSON text, of schemas with or without
    `{"type": "function", "function": ...}` around them.

    Raises:
        UserError: naming what is no schema.
    """
    tools = from_json(value, where, key)
    if tools is None:
        return ()
    tools = [tools] if isinstance(tools, dict) else listed(tools, where, key)
    return tuple(_tool(from_json(tool, where, key), f"{where}, {key}[{i}]") for i, tool in enumerate(tools))


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """One schema. Raises: UserError."""
    require_object(tool, where, ())
    inner = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
    if not isinstance(inner.get("name"), str):
        raise UserError(f"{where}: expected the schema of a function with a 'name', found {found_keys(inner)}")
    if inner is not tool:
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
