"""What a chat template runs in: Jinja's sandbox with what transformers puts into it (utils/chat_template_utils.py)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

Span = tuple[int, int]
"""Where in a text something begins, and where it ends."""
_MARKS = " marks"
"""Key of the marks among a template's variables; no template can name it."""


@dataclass
class _Marks:
    """What `{% generation %}` has marked in the text so far."""

    length: int = 0
    spans: list[Span] = field(default_factory=list)


class Program:
    """A compiled chat template.

    Attributes:
        marks: whether it says itself what the assistant wrote, between `{% generation %}` and `{% endgeneration %}`.

    Args:
        folder: to be named in errors.

    Raises:
        UserError: the text is no Jinja program.
    """

    def __init__(self, text: str, folder: Path) -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_extension()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as e:
            raise UserError(f"the chat template of {folder} is no Jinja program ({e})") from e
        self.marks = getattr(environment, "has_generation", False)

    def run(self, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The text that the template makes, and what it marks in it. It is somebody's program: raises anything."""
        marks, blocks = _Marks(), []
        for block in self._template.generate({**variables, _MARKS: marks}):
            blocks.append(block)
            marks.length += len(block)
        return "".join(blocks), marks.spans


def _generation_extension() -> type:
    """The tag `{% generation %}` ... `{% endgeneration %}`, which shows what is in it and notes where that is."""
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
    """JSON as transformers writes it: Jinja's own filter would write `<` and `'` as HTML wants them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    """What templates call with a conversation that they cannot show."""
    import jinja2

    raise jinja2.TemplateError(message)
