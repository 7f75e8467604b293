"""The environment of a chat template: Jinja's sandbox with what transformers adds (utils/chat_template_utils.py)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

Span = tuple[int, int]
"""Start and end of a part of a text, as character offsets."""
_MARKS = " marks"
"""Key of the marks among a template's variables; it is not an identifier, so no template can refer to it."""


@dataclass
class _Marks:
    """The parts of the text that `{% generation %}` has marked so far."""

    length: int = 0
    spans: list[Span] = field(default_factory=list)


class Program:
    """A compiled chat template.

    Attributes:
        marks: whether the template marks what the assistant wrote, by `{% generation %}` ... `{% endgeneration %}`.

    Args:
        folder: the checkpoint folder, for error messages.

    Raises:
        UserError: the text is not a Jinja program.
    """

    def __init__(self, text: str, folder: Path) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_extension()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template = environment.from_string(text)
        except MemoryError:
            raise
        except Exception as e:  # jinja's own errors, and Python's for what is nested too deep
            reason = " ".join(f"{e}".split())[:200] or type(e).__name__
            raise UserError(f"the chat template of {folder} is no Jinja program ({reason})") from e
        self.marks = getattr(environment, "has_generation", False)

    def has_marks(self) -> bool:
        """Returns `marks`, for a caller in another process."""
        return self.marks

    def run(self, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Returns the text that the template makes, and the spans it marks; a template may raise any exception."""
        marks, blocks = _Marks(), []
        for block in self._template.generate({**variables, _MARKS: marks}):
            blocks.append(block)
            marks.length += len(block)
        return "".join(blocks), marks.spans


def _generation_extension() -> type:
    """Returns a Jinja extension for the tag `{% generation %}` ... `{% endgeneration %}`, which records where its
    content is.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            self.environment.extend(has_generation=True)
            return nodes.CallBlock(self.call_method("mark", [nodes.ContextReference()]), [], [], body, lineno=line)

        def mark(self, context: Any, caller: Any) -> str:
            text = caller()
            marks = context.get(_MARKS)
            marks.spans.append((marks.length, marks.length + len(text)))
            return text

    return Generation


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Returns a value as JSON the way transformers writes it; Jinja's own filter would escape `<` and `'` for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    """Raises the error by which a template refuses a conversation: its `raise_exception`."""
    import jinja2

    raise jinja2.TemplateError(message)
