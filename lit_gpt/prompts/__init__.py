"""Prompt styles by name: how a conversation becomes the text that the model sees."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt import errors  # whose `shown` has the name of a module here
from lit_gpt.errors import UserError
from lit_gpt.prompts.chat_template import ChatTemplate, read_template
from lit_gpt.prompts.messages import calls_of
from lit_gpt.prompts.shown import left_out
from lit_gpt.prompts.style import Style
from lit_gpt.prompts.styles import STYLES
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.records import parse_object
from lit_gpt.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat_template"
"""Name of the prompt style that is a checkpoint's own chat template."""

__all__ = ["CHAT_TEMPLATE", "STYLES", "ChatTemplate", "Exchange", "Style", "Turn"]
__all__ += ["calls_of", "ends_of", "left_out", "make_prompt", "open_style", "read_template", "stop_ids", "with_kwargs"]


def open_style(
    name: str, checkpoint_dir: Path | None = None, tokenizer: Tokenizer | None = None
) -> Style | ChatTemplate:
    """Returns the prompt style with the given name.

    Args:
        name: name of a style; `chat_template` may be followed by the template's variables, as `with_kwargs` writes it.
        checkpoint_dir: folder with the tokenizer and its chat template. Without it `chat_template` is an error, and the
            other styles keep the special tokens they are written with, `<s>` and `</s>` by default.
        tokenizer: the folder's tokenizer, if it is open already.

    Raises:
        UserError: no style of that name, or the folder has no chat template.
    """
    bare, _, kwargs = name.partition(" ")
    if bare == CHAT_TEMPLATE:
        if checkpoint_dir is None:
            raise UserError(f"the prompt style {CHAT_TEMPLATE} is a checkpoint's own, and none is named here")
        return ChatTemplate(checkpoint_dir, tokenizer, _read_kwargs(kwargs) if kwargs else None)
    if name not in STYLES:
        raise UserError(f"unknown prompt style {name!r}; known are {', '.join((*STYLES, CHAT_TEMPLATE))}")
    if tokenizer is None and checkpoint_dir is not None:
        tokenizer = Tokenizer(checkpoint_dir)
    return STYLES[name].of(tokenizer) if tokenizer else STYLES[name]


def ends_of(style: Style | ChatTemplate) -> list[str]:
    """Returns, as a list, the token that ends an answer in the style; empty if it is the tokenizer's own."""
    end = style.ending.token if isinstance(style, ChatTemplate) else style.end
    return [] if end is None else [end]


def stop_ids(style: Style | ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the ids of the tokens that end an answer: the tokenizer's stop tokens and the style's own end."""
    return tokenizer.stop_ids | {tokenizer.token_to_id(end) for end in ends_of(style)}


def with_kwargs(name: str, kwargs: Mapping[str, Any]) -> str:
    """Returns a style's name with its template's variables, such as `chat_template {"enable_thinking": false}`.

    A run records its prompt style in this form, so that generation asks exactly as the training did.

    Raises:
        UserError: the style is not a chat template, and takes no variables.
    """
    if not kwargs:
        return name
    if name != CHAT_TEMPLATE:
        raise UserError(f"--template_kwargs goes with --prompt_style {CHAT_TEMPLATE}; {name} takes none")
    return f"{name} {json.dumps(kwargs, sort_keys=True)}"


def _read_kwargs(text: str) -> dict[str, Any]:
    """Returns the template's variables from the JSON object that `with_kwargs` wrote.

    Raises:
        UserError: the text is not a JSON object.
    """
    where = f"the prompt style {CHAT_TEMPLATE} with {errors.shown(text)}"
    return parse_object(text, where, "it is followed by a JSON object, if by anything")


def make_prompt(style: str, instruction: str, context: str = "", checkpoint_dir: Path | None = None) -> str:
    """Returns the prompt for `instruction`, with an optional `context` (Alpaca's `input`).

    Args:
        checkpoint_dir: folder with the tokenizer and its chat template; see `open_style`.

    Raises:
        UserError: no style of that name, or the folder has no chat template.
    """
    return open_style(style, checkpoint_dir).exchanges([Turn("user", instruction, context)])[0].prompt
