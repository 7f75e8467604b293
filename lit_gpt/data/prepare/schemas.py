"""Defines the schemas of known data sets: each parses one entry into rows, or names what is wrong with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_gpt.data.prepare.choices import Choice
from lit_gpt.data.prepare.conversations import Conversation
from lit_gpt.data.prepare.rows import Row, conversation, verdicts
from lit_gpt.data.prepare.trees import Trees
from lit_gpt.data.prepare.values import (
    found_keys,
    from_json,
    kind,
    listed,
    optional,
    require_object,
    text,
    unused_keys,
)
from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn

Parse = Callable[[Any, str, str], list[Row]]
"""A schema: (entry, file, location) -> rows. It raises UserError naming file, location and key."""


@dataclass(frozen=True)
class Keys:
    """The schema of single-turn entries, by the names of their keys; a `Parse` when called."""

    instruction: str
    response: str
    context: str | None = None
    system: str | None = "system"
    history: str | None = None
    """Key of earlier questions and answers, a list of pairs."""
    needs_context: bool = False
    """Whether every entry must have the context's key."""
    other_context: str | None = None
    """Key of the context in entries where `context` holds nothing."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Keys that each entry must have."""
        context = (self.context,) if self.needs_context and self.context else ()
        return self.instruction, self.response, *context

    def require_columns(self, entry: Mapping[str, Any], file: Path) -> None:
        """Checks that a table has the columns of this schema; raises UserError if one is missing.

        Args:
            entry: any row of the table; its keys are the header.
        """
        if missing := [key for key in self.needed if key not in entry]:
            raise UserError(
                f"{file}: no column {' and no column '.join(map(repr, missing))}; found {found_keys(entry)}; "
                "name yours with --columns"
            )

    def __call__(self, entry: Any, file: str, location: str) -> list[Row]:
        where = f"{file}, {location}"
        require_object(entry, where, self.needed)
        good = verdicts(entry, where)
        instruction, response = (text(entry[key], where, key) for key in (self.instruction, self.response))
        before = self._before(entry, where)
        context = self.other_context if self.context and not entry.get(self.context) else self.context
        if context and not isinstance(entry.get(context), str | None):
            way = f'--columns "{{instruction: {self.instruction}, response: {self.response}}}" leaves it out'
            raise UserError(f"{where}: {context!r} must be text, found {kind(entry[context])}; {way}")
        turns = (*before, Turn("user", instruction, optional(entry, where, context)), Turn("assistant", response))
        if system := optional(entry, where, self.system):
            turns = (Turn("system", system), *turns)
        read = (self.instruction, self.response, context, self.system, self.history, *good)
        return [Row(turns, file=file, location=location, is_chat=bool(before), unused=unused_keys(entry, read))]

    def _before(self, entry: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
        """Returns the turns of the history; raises UserError if it is no list of pairs."""
        pairs = from_json(entry.get(self.history), where, self.history) if self.history else None
        turns: list[Turn] = []
        for i, pair in enumerate(listed(pairs or [], where, str(self.history))):
            at = f"{where}, {self.history}[{i}]"
            if not (isinstance(pair, list) and len(pair) == 2):
                raise UserError(f"{at}: expected a question and its answer, found {kind(pair)}")
            turns += [Turn("user", text(pair[0], at, "question")), Turn("assistant", text(pair[1], at, "answer"))]
        return tuple(turns)


alpaca = Keys("instruction", "output", "input", history="history", other_context="context")
"""https://github.com/tatsu-lab/stanford_alpaca#data-release; `input` may be absent. LLaMA-Factory adds history."""
dolly = Keys("instruction", "response", "context", history="history", other_context="input")
"""https://huggingface.co/datasets/databricks/databricks-dolly-15k; `context` may be absent."""
_completion = Keys("prompt", "completion")
longform = Keys("input", "output")
"""https://github.com/akoksal/LongForm"""
flan = Keys("inputs", "targets")
"""https://huggingface.co/datasets/Muennighoff/flan"""
_orca = Keys("question", "response", system="system_prompt")
"""https://huggingface.co/datasets/Open-Orca/OpenOrca"""


def alpaca_libre(entry: Any, file: str, location: str) -> list[Row]:
    """Parses an entry of Alpaca's schema in which a missing input is written `<noinput>` (Alpaca Libre)."""
    (row,) = alpaca(entry, file, location)
    if row.context.strip().lower() == "<noinput>":
        row = replace(row, turns=tuple(replace(turn, context="") for turn in row.turns))
    return [row]


def _prompt_completion(entry: Any, file: str, location: str) -> list[Row]:
    """Parses a prompt and its completion, both texts or lists of messages; only the completion is supervised.

    That is how TRL does it (https://huggingface.co/docs/trl/dataset_formats).
    """
    prompt = entry.get("prompt")
    if not isinstance(prompt, list):
        return _completion(entry, file, location)
    require_object(entry, f"{file}, {location}", _completion.needed)
    answer = entry["completion"]
    answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    rest = {key: value for key, value in entry.items() if key not in ("prompt", "completion")}
    parse = Conversation("messages")
    (before,) = parse({**rest, "messages": prompt}, file, location)
    messages = [*prompt, *listed(answer, f"{file}, {location}", "completion")]
    (row,) = parse({**rest, "messages": messages}, file, location)
    n = len(before.turns)
    return [
        replace(
            row, turns=(*(replace(turn, taught=turn.role != "assistant") for turn in row.turns[:n]), *row.turns[n:])
        )
    ]


def _self_instruct(entry: Any, file: str, location: str) -> list[Row]:
    """Parses an instruction with several instances, one row each (https://github.com/yizhongw/self-instruct)."""
    where = f"{file}, {location}"
    require_object(entry, where, ("instruction", "instances"))
    instruction, instances = entry["instruction"], listed(entry["instances"], where, "instances")
    unused = unused_keys(entry, ("instruction", "instances"))
    single = Keys("instruction", "output", "input")
    rows = []
    for i, instance in enumerate(instances, 1):
        require_object(instance, f"{where}, instance {i}", ("output",))
        (row,) = single({"instruction": instruction, **instance}, file, f"{location}, instance {i}")
        inner = tuple(f"instances[].{key}" for key in row.unused)
        rows.append(replace(row, unused=(*(unused if i == 1 else ()), *inner)))
    return rows


def lima(entry: Any, file: str, location: str) -> list[Row]:
    """Parses a list of texts, user and assistant in turns (https://huggingface.co/datasets/GAIR/lima)."""
    where = f"{file}, {location}"
    require_object(entry, where, ("conversations",))
    messages = listed(entry["conversations"], where, "conversations")
    turns = [
        Turn(("user", "assistant")[i % 2], text(s, where, f"conversations[{i}]"))  # type: ignore[arg-type]
        for i, s in enumerate(messages)
    ]
    system = optional(entry, where, "system")
    turns = [Turn("system", system), *turns] if system else turns
    return [conversation(turns, file, location, unused=unused_keys(entry, ("conversations", "system")))]


def lima_first(entry: Any, file: str, location: str) -> list[Row]:
    """Parses an entry of LIMA's schema and keeps only the first question and its answer."""
    (row,) = lima(entry, file, location)
    n = 3 if row.system else 2
    return [replace(row, turns=row.turns[:n], is_chat=False)]


def _conversations(entry: Any, file: str, location: str) -> list[Row]:
    """Parses `conversations`: LIMA's schema if they are texts, ShareGPT's if they are objects with roles."""
    messages = entry.get("conversations")
    is_texts = isinstance(messages, list) and bool(messages) and isinstance(messages[0], str)
    return (lima if is_texts else Conversation("conversations"))(entry, file, location)


_SCHEMAS: list[tuple[tuple[str, ...], Parse]] = [
    (("conversations",), _conversations),
    (("messages",), Conversation("messages")),
    (("prompt", "message_tree_id"), Trees()),
    (("instruction", "instances"), _self_instruct),
    (("instruction", "output"), alpaca),
    (("instruction", "response"), dolly),
    (("prompt", "completion"), _prompt_completion),
    (("prompt", "response"), Keys("prompt", "response")),
    (("question", "choices", "answer"), Choice()),
    (("question", "choices", "answerKey"), Choice(answer="answerKey")),
    (("question", "options", "answer"), Choice(choices="options")),
    (("question", "A", "B", "answer"), Choice(choices=None)),
    (("input", "A", "B", "target"), Choice("input", None, "target")),
    (("question", "answer"), Keys("question", "answer", "context")),
    (("question", "response"), _orca),
    (("inputs", "targets"), flan),
    (("input", "output"), longform),
]
"""Keys that tell a schema -> its parser; the first match counts."""


def recognize(entry: Any, where: str) -> Parse:
    """Returns the schema of an entry, recognized by its keys; raises UserError if it is of no known one."""
    known = "; ".join(dict.fromkeys("+".join(keys[:2]) for keys, _ in _SCHEMAS))
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object with {known}, found {kind(entry)}")
    for keys, parse in _SCHEMAS:
        if all(key in entry for key in keys):
            return parse
    raise UserError(f"{where}: expected the keys {known}, found {found_keys(entry)}; name yours with --columns")
