"""Prompt styles by name: how a conversation becomes the text that the model sees."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts.chat_template import ChatTemplate, read_template
from lit_gpt.prompts.messages import calls_of
from lit_gpt.prompts.shown import left_out
from lit_gpt.prompts.styles import STYLES, Style
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat_template"
"""The style that is the model's own."""

__all__ = ["CHAT_TEMPLATE", "STYLES", "ChatTemplate", "Exchange", "Style", "Turn"]
__all__ += ["calls_of", "left_out", "make_prompt", "open_style", "read_template"]


def open_style(
    name: str,
    checkpoint_dir: Path | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Style | ChatTemplate:
    """The style of that name.

    Args:
        checkpoint_dir: where the tokenizer and its chat template are; needed for `chat_template` only.
        tokenizer: that of the folder, if it is open already.
        template_kwargs: what else a chat template is given, such as `enable_thinking`.

    Raises:
        UserError: no style of that name, or the folder has no chat template; `template_kwargs` for another style.
    """
    if name == CHAT_TEMPLATE:
        if checkpoint_dir is None:
            raise UserError(f"the prompt style {CHAT_TEMPLATE} is a checkpoint's own, and none is named here")
        return ChatTemplate(checkpoint_dir, tokenizer, template_kwargs)
    if template_kwargs:
        raise UserError(f"--template_kwargs is for --prompt_style {CHAT_TEMPLATE}; the style {name!r} takes none")
    if name not in STYLES:
        raise UserError(f"unknown prompt style {name!r}; known are {', '.join((*STYLES, CHAT_TEMPLATE))}")
    return STYLES[name]


def make_prompt(style: str, instruction: str, context: str = "", checkpoint_dir: Path | None = None) -> str:
    """The prompt for `instruction`, with an optional `context` (Alpaca's `input`).

    Args:
        checkpoint_dir: as for `open_style`.

    Raises:
        UserError: as `open_style`.
    """
    return open_style(style, checkpoint_dir).exchanges([Turn("user", instruction, context)])[0].prompt
