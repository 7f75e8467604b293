"""Prompt styles by name: how a conversation becomes the text that the model sees."""

from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.prompts.chat_template import ChatTemplate, read_template
from lit_gpt.prompts.style import Style
from lit_gpt.prompts.styles import STYLES
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.tokenizer import Tokenizer

CHAT_TEMPLATE = "chat_template"
"""The style that is the model's own."""

__all__ = ["CHAT_TEMPLATE", "STYLES", "ChatTemplate", "Exchange", "Style", "Turn"]
__all__ += ["ends_of", "make_prompt", "open_style", "read_template", "stop_ids"]


def open_style(
    name: str, checkpoint_dir: Path | None = None, tokenizer: Tokenizer | None = None
) -> Style | ChatTemplate:
    """The style of that name.

    Args:
        checkpoint_dir: where the tokenizer and its chat template are. Without it, `chat_template` is not to be had, and
            the others have the special tokens of the models that they are known by.
        tokenizer: that of the folder, if it is open already.

    Raises:
        UserError: no style of that name, or the folder has no chat template.
    """
    if name == CHAT_TEMPLATE:
        if checkpoint_dir is None:
            raise UserError(f"the prompt style {CHAT_TEMPLATE} is a checkpoint's own, and none is named here")
        return ChatTemplate(checkpoint_dir, tokenizer)
    if name not in STYLES:
        raise UserError(f"unknown prompt style {name!r}; known are {', '.join((*STYLES, CHAT_TEMPLATE))}")
    if tokenizer is None and checkpoint_dir is not None:
        tokenizer = Tokenizer(checkpoint_dir)
    return STYLES[name].of(tokenizer) if tokenizer else STYLES[name]


def ends_of(style: Style | ChatTemplate) -> list[str]:
    """The token with which an answer ends in the style, if it is not the tokenizer's end of sequence."""
    try:
        end = style.exchanges([Turn("user", "a"), Turn("assistant", "b")])[0].end
    except UserError:  # somebody's program, that does not show such a conversation
        end = None
    return [] if end is None else [end]


def stop_ids(style: Style | ChatTemplate, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer: the model's own, and those of the style."""
    return tokenizer.stop_ids | {tokenizer.token_to_id(end) for end in ends_of(style)}


def make_prompt(style: str, instruction: str, context: str = "", checkpoint_dir: Path | None = None) -> str:
    """The prompt for `instruction`, with an optional `context` (Alpaca's `input`).

    Args:
        checkpoint_dir: as for `open_style`.

    Raises:
        UserError: as `open_style`.
    """
    return open_style(style, checkpoint_dir).exchanges([Turn("user", instruction, context)])[0].prompt
