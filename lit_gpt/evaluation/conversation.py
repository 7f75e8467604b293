"""Renders a conversation that lm-eval asks, in a prompt style, as the text that the model continues."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts import ChatTemplate, Style, Turn
from lit_gpt.tokenizer import Tokenizer

_MARK = "\ue000\ue001 "
"""Text appended to an answer that the model continues: where a template shows it, the answer so far ends. The space at
its end tells whether the template strips spaces."""


def conversation_text(
    style: Style | ChatTemplate, tokenizer: Tokenizer, history: Sequence[dict[str, Any]], ask: bool
) -> str:
    """Returns the text of the turns, up to where the model continues.

    With a chat template it equals transformers' `apply_chat_template`, byte for byte. Between turns of the other styles
    stands the token that ends an answer in training.

    Args:
        history: turns with their role and content.
        ask: whether the model begins an answer; otherwise it continues the last turn.

    Raises:
        UserError: the style refuses the turns.
    """
    turns = [Turn(m["role"], m["content"]) for m in history]
    if isinstance(style, Style):
        return _styled(style, tokenizer, turns)
    return style.render(turns, ask=True) if ask else _continued(style, turns)


def _styled(style: Style, tokenizer: Tokenizer, turns: Sequence[Turn]) -> str:
    """Returns the text in a built-in style; it ends with the answer begun so far, or with the style's `lead`.

    Raises:
        UserError: the style refuses the turns.
    """
    if turns[-1].role == "assistant":
        return _styled(style, tokenizer, turns[:-1]) + turns[-1].text
    # a style puts its own line breaks after a system text, and lm-eval's descriptions end with some
    stripped = [replace(t, text=t.text.strip()) if t.role == "system" else t for t in turns]
    eos = tokenizer.id_to_token(tokenizer.eos_id) or ""
    return "".join(e.text(eos) for e in style.exchanges(stripped)) + style.lead


def _continued(template: ChatTemplate, turns: Sequence[Turn]) -> str:
    """Returns the text up to the end of what the last turn says, like transformers' `continue_final_message`.

    Raises:
        UserError: the template refuses the turns, or does not show the beginning of an answer.
    """
    last = replace(turns[-1], text=turns[-1].text + _MARK)
    text = template.render([*turns[:-1], last], ask=False)
    at = text.rfind(_MARK.strip())
    if at < 0:
        raise UserError(f"the chat template of {template.folder} does not show the beginning of an answer")
    return text[:at] if text[at:].startswith(_MARK) else text[:at].rstrip()
