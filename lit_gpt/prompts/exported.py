"""The prompt style of a training, written into a checkpoint folder for other tools: chat template and stop tokens."""

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
"""Folder in which transformers keeps the templates that have names of their own."""
_DEFAULT = "default"
_CHAT = (Turn("user", "Who?"), Turn("assistant", "I."), Turn("user", "And you?"))
_MARK = "\ue000"
"""A character that no template contains."""
_PROBES = (_CHAT[:1], _CHAT, (Turn("system", "Be brief."), *_CHAT))
"""Conversations on which a template and a style are compared."""


def carry_style(folder: Path, name: str, llama_cpp: bool = False) -> list[str]:
    """Writes the chat template of a prompt style and its stop tokens into a folder.

    The model's own template is kept if it renders the same text. Templates with names of their own stay.

    Args:
        llama_cpp: whether the template is for llama.cpp rather than for transformers.

    Returns:
        Lines to print; none if the template is the model's own, or the folder has no tokenizer.

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
    """Returns a space if a prompt must have one after a written-out begin-of-sequence token, otherwise an empty text.

    Some tokenizers put a space before the first text, but not before the text that follows a written-out
    begin-of-sequence token; there the template has to write the space for the ids to be the same. llama.cpp puts the
    space after that token as well, so its template needs none.
    """
    text = _asked(style, _PROBES[0])
    if not style.own_bos or style.first_bos or tokenizer.encode(style.own_bos + text) == tokenizer.encode(text):
        return ""
    return " " if tokenizer.encode(f"{style.own_bos} {text}") == tokenizer.encode(text) else ""


def _shows_the_same(folder: Path, style: Style, tokenizer: Tokenizer, gap: str) -> bool:
    """Returns whether the folder has a chat template that asks as the style does, begin-of-sequence token included."""
    begin = "" if style.first_bos or not style.own_bos else style.own_bos + gap
    try:
        template = ChatTemplate(folder, tokenizer)
        return all(_asked(template, turns) == begin + _asked(style, turns) for turns in _PROBES)
    except UserError:  # there is none, it is no program, or it refuses a conversation
        return False


def style_shown(folder: Path, tokenizer: Tokenizer) -> Style | None:
    """Returns the style of ours that the folder's chat template renders, or None.

    The style's default system text is the template's own. The begin-of-sequence token is ignored in the comparison.
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
    """Returns the prompt that asks for the answer to `turns`.

    Raises:
        UserError: the template refuses the turns.
    """
    if isinstance(style, ChatTemplate):
        return style.render(turns, ask=True)
    return "".join(e.text(style.eos) for e in style.exchanges(turns))


def _write_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Writes chat templates by name to transformers' files, and drops them from tokenizer_config.json.

    Some tools read tokenizer_config.json first and others the files first, so a template must stand in one place only.
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
    """Moves the templates of tokenizer_config.json into files if the folder has template files, one for each name."""
    files = [folder / FILE, *(folder / _FOLDER).glob("*.jinja")]
    if any(path.is_file() for path in files) and "chat_template" in read_optional(folder / "tokenizer_config.json"):
        _write_templates(folder, read_templates(folder))


def _write_stops(folder: Path, ids: frozenset[int]) -> None:
    """Adds those of `ids` to generation_config.json that neither it nor config.json lists as end-of-sequence tokens."""
    stated = read_settings(folder).model.get("eos_token_id", [])
    stated = stated if isinstance(stated, list) else [stated]
    if ids - set(stated):
        path = folder / "generation_config.json"
        config = read_optional(path) | {"eos_token_id": [*stated, *sorted(ids - set(stated))]}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
