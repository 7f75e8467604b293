"""What a folder tells other tools of the prompt style that its model was trained in: chat template and end tokens."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.prompts import STYLES, ChatTemplate, Style, Turn, open_style, stop_ids
from lit_gpt.prompts.chat_template import FILE, read_templates
from lit_gpt.prompts.jinja import jinja_of
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.tokenizer.settings import read_optional, read_settings

FOLDER = "additional_chat_templates"
"""Where transformers keeps the templates that have names of their own."""
_DEFAULT = "default"
_CHAT = (Turn("user", "Who?"), Turn("assistant", "I."), Turn("user", "And you?"))
_MARK = "\ue000"
"""A text that no template has."""
_PROBES = (_CHAT[:1], _CHAT, (Turn("system", "Be brief."), *_CHAT))
"""Conversations by which a template is told from a style."""


def carry_style(folder: Path, name: str) -> list[str]:
    """Give a folder the chat template of a prompt style and let generation end where its answers do.

    A template of the model's own that shows the same is kept. Templates with names of their own stay.

    Returns:
        Lines for the person; none if the template is the model's own.

    Raises:
        UserError: no such style, or no tokenizer in the folder.
    """
    tokenizer = Tokenizer(folder)
    style = open_style(name, folder, tokenizer)
    _write_stops(folder, stop_ids(style, tokenizer))
    if isinstance(style, ChatTemplate):
        return []
    templates, text = read_templates(folder), jinja_of(style)
    own = templates.get(_DEFAULT)
    if own != text:
        if shows_the_same(folder, style, tokenizer):
            return []
        write_templates(folder, templates | {_DEFAULT: text})
    instead = {None: ", and the base has none", text: ""}.get(own, ", not the base's own")
    return [f"Prompt style {name}: the chat template that goes along is that style's{instead}"]


def shows_the_same(folder: Path, style: Style, tokenizer: Tokenizer) -> bool:
    """Whether the folder has a chat template that asks as the style does, but for a begin-of-sequence token."""
    try:
        return _asks_alike(ChatTemplate(folder, tokenizer), style)
    except UserError:  # there is none, or it is no program
        return False


def style_shown(folder: Path, tokenizer: Tokenizer) -> Style | None:
    """The style that the folder's chat template shows, with a system text of its own where it has one; None if none."""
    try:
        template = ChatTemplate(folder, tokenizer)
        asked = template.render(_CHAT[:1], ask=True)
    except UserError:  # there is none, or it is no program
        return None
    for style in (style.of(tokenizer) for style in STYLES.values()):
        with_system = _asked(style, (Turn("system", _MARK), *_CHAT[:1])).removeprefix(style.bos)
        pattern = re.escape(with_system).replace(_MARK, "(.+?)")
        found = re.fullmatch(pattern, asked.removeprefix(style.bos), re.DOTALL)
        shown = replace(style, default_system=found[1] if found else "")
        if _asks_alike(template, shown):
            return shown
    return None


def _asks_alike(template: ChatTemplate, style: Style) -> bool:
    try:
        return all(
            _asked(template, turns).removeprefix(style.bos) == _asked(style, turns).removeprefix(style.bos)
            for turns in _PROBES
        )
    except UserError:  # the template refuses a conversation
        return False


def _asked(style: Style | ChatTemplate, turns: Sequence[Turn]) -> str:
    """The text that asks for the answer to `turns`. Raises: UserError if the template refuses them."""
    if isinstance(style, ChatTemplate):
        return style.render(turns, ask=True)
    *before, last = style.exchanges(turns)
    return "".join(e.prompt + (e.answer or "") + (e.end or style.eos) for e in before) + last.prompt


def write_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write chat templates by name as transformers keeps them, and take those out of tokenizer_config.json.

    Others read that before the file, or after it; what stands in both would be two things.
    """
    path = folder / "tokenizer_config.json"
    config = read_optional(path)
    if config.pop("chat_template", None) is not None:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in templates.items():
        at = folder / FILE if name == _DEFAULT else folder / FOLDER / f"{Path(name).name}.jinja"
        at.parent.mkdir(exist_ok=True)
        at.write_text(text, encoding="utf-8")


def settle_templates(folder: Path) -> None:
    """Leave one chat template of each name where a folder has files of them and others in tokenizer_config.json."""
    files = [folder / FILE, *(folder / FOLDER).glob("*.jinja")]
    if any(path.is_file() for path in files) and "chat_template" in read_optional(folder / "tokenizer_config.json"):
        write_templates(folder, read_templates(folder))


def _write_stops(folder: Path, ids: frozenset[int]) -> None:
    """Let generation_config.json have all `ids`, if what it or config.json says does not."""
    stated = read_settings(folder).model.get("eos_token_id", [])
    stated = stated if isinstance(stated, list) else [stated]
    if ids - set(stated):
        path = folder / "generation_config.json"
        config = read_optional(path) | {"eos_token_id": [*stated, *sorted(ids - set(stated))]}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
