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
from lit_gpt.tokenizer import FILES, Tokenizer
from lit_gpt.tokenizer.settings import read_optional, read_settings

_FOLDER = "additional_chat_templates"
"""Where transformers keeps the templates that have names of their own."""
_DEFAULT = "default"
_CHAT = (Turn("user", "Who?"), Turn("assistant", "I."), Turn("user", "And you?"))
_MARK = "\ue000"
"""A text that no template has."""
_PROBES = (_CHAT[:1], _CHAT, (Turn("system", "Be brief."), *_CHAT))
"""Conversations by which a template is told from a style."""


def carry_style(folder: Path, name: str, llama_cpp: bool = False) -> list[str]:
    """Give a folder the chat template of a prompt style and let generation end where its answers do.

    A template of the model's own that shows the same is kept. Templates with names of their own stay.

    Args:
        llama_cpp: whether the template is for llama.cpp, and not for transformers.

    Returns:
        Lines for the person; none if the template is the model's own, or the folder has no tokenizer to ask with.

    Raises:
        UserError: no such style, or a damaged tokenizer.
    """
    if not any((folder / name).is_file() for name in FILES):
        return []
    tokenizer = Tokenizer(folder)
    style = open_style(name, folder, tokenizer)
    _write_stops(folder, stop_ids(style, tokenizer))
    if isinstance(style, ChatTemplate):
        return []
    templates, gap = read_templates(folder), _gap(style, tokenizer)
    own, text = templates.get(_DEFAULT), jinja_of(style, "" if llama_cpp else gap)
    written = f"Prompt style {name}: the chat template that goes along is that style's"
    if own in (jinja_of(style), jinja_of(style, gap)):
        instead = ""
    elif _shows_the_same(folder, style, tokenizer, "" if llama_cpp else gap):
        return []
    else:
        instead = ", and the base has none" if own is None else ", not the base's own"
    _write_templates(folder, templates | {_DEFAULT: text})
    return [written + instead]


def _gap(style: Style, tokenizer: Tokenizer) -> str:
    """A space, if a text after a begin-of-sequence token that is written out is tokenized as that token itself is
    followed by with a space only: such tokenizers put one before the first text of all, written out or not.

    llama.cpp puts it there after that token as well.
    """
    text = _asked(style, _PROBES[0])
    if not style.own_bos or style.first_bos or tokenizer.encode(style.own_bos + text) == tokenizer.encode(text):
        return ""
    return " " if tokenizer.encode(f"{style.own_bos} {text}") == tokenizer.encode(text) else ""


def _shows_the_same(folder: Path, style: Style, tokenizer: Tokenizer, gap: str) -> bool:
    """Whether the folder has a chat template that asks as the style does, with the token that a text begins with."""
    begin = "" if style.first_bos or not style.own_bos else style.own_bos + gap
    try:
        template = ChatTemplate(folder, tokenizer)
        return all(_asked(template, turns) == begin + _asked(style, turns) for turns in _PROBES)
    except UserError:  # there is none, it is no program, or it refuses a conversation
        return False


def style_shown(folder: Path, tokenizer: Tokenizer) -> Style | None:
    """The style that the folder's chat template shows, with a system text of its own where it has one; None if none.

    A begin-of-sequence token makes no difference.
    """
    try:
        template = ChatTemplate(folder, tokenizer)
        shown = [_asked(template, turns) for turns in _PROBES]
    except UserError:  # there is none, it is no program, or it refuses a conversation
        return None
    for style in (style.of(tokenizer) for style in STYLES.values()):
        bos = style.bos
        with_system = _asked(style, (Turn("system", _MARK), *_PROBES[0])).removeprefix(bos)
        pattern = re.escape(with_system).replace(_MARK, "(.+?)")
        found = re.fullmatch(pattern, shown[0].removeprefix(bos), re.DOTALL)
        style = replace(style, default_system=found[1] if found else "")
        if all(_asked(style, t).removeprefix(bos) == s.removeprefix(bos) for t, s in zip(_PROBES, shown, strict=True)):
            return style
    return None


def _asked(style: Style | ChatTemplate, turns: Sequence[Turn]) -> str:
    """The text that asks for the answer to `turns`. Raises: UserError if the template refuses them."""
    if isinstance(style, ChatTemplate):
        return style.render(turns, ask=True)
    *before, last = style.exchanges(turns)
    return "".join(e.prompt + (e.answer or "") + (e.end or style.eos) for e in before) + last.prompt


def _write_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write chat templates by name as transformers keeps them, and take those out of tokenizer_config.json.

    Others read that before the file, or after it; what stands in both would be two things.
    """
    path = folder / "tokenizer_config.json"
    config = read_optional(path)
    if config.pop("chat_template", None) is not None:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in templates.items():
        at = folder / FILE if name == _DEFAULT else folder / _FOLDER / f"{Path(name).name}.jinja"
        at.parent.mkdir(exist_ok=True)
        at.write_text(text, encoding="utf-8")


def settle_templates(folder: Path) -> None:
    """Leave one chat template of each name where a folder has files of them and others in tokenizer_config.json."""
    files = [folder / FILE, *(folder / _FOLDER).glob("*.jinja")]
    if any(path.is_file() for path in files) and "chat_template" in read_optional(folder / "tokenizer_config.json"):
        _write_templates(folder, read_templates(folder))


def _write_stops(folder: Path, ids: frozenset[int]) -> None:
    """Let generation_config.json have all `ids`, if what it or config.json says does not."""
    stated = read_settings(folder).model.get("eos_token_id", [])
    stated = stated if isinstance(stated, list) else [stated]
    if ids - set(stated):
        path = folder / "generation_config.json"
        config = read_optional(path) | {"eos_token_id": [*stated, *sorted(ids - set(stated))]}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
