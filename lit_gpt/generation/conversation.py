"""A conversation as the tokens that a model continues, in the pieces of training: for chat, server and scripts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from lit_gpt.prompts import ChatTemplate, Exchange, Style, Turn, stop_ids
from lit_gpt.tokenizer import Tokenizer


class Asked(NamedTuple):
    """A prompt as the model sees it."""

    ids: list[int]
    """Token ids; none at all if the text is empty and the tokenizer begins no text with a token."""
    text: str
    """Text of the prompt, with all that the prompt style adds."""
    stop_ids: frozenset[int]
    """Tokens that end the answer."""


def asked(
    style: Style | ChatTemplate,
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    end_ids: Collection[int] = (),
    written: Callable[[str], Sequence[int] | None] = lambda answer: None,
) -> Asked:
    """Returns the prompt that asks for the next answer, or lets the model continue the answer that the turns end with.

    Args:
        turns: at least one, besides a system text.
        end_ids: tokens that ended answers in training, besides the style's own; a tool call may end with another one.
        written: returns the tokens in which the model wrote an earlier answer, given as the style shows it, or None. A
            text can be tokenized in several ways, and the cache holds the way that the model chose.

    Raises:
        UserError: the style refuses the turns.
    """
    begun = turns[-1].text if turns[-1].role == "assistant" else ""
    exchanges = style.exchanges(turns[:-1] if turns[-1].role == "assistant" else turns, tools)
    eos = tokenizer.id_to_token(tokenizer.eos_id) or ""
    begun = style.lead + begun if begun and isinstance(style, Style) else begun
    ids = tokenizer.encode(exchanges[0].prompt)
    for before, e in pairwise(exchanges):
        ids += _answer_ids(before, tokenizer, written)
        end = before.closing(eos)
        ids += tokenizer.encode(end + e.prompt, bos=False) if end else tokenizer.continue_batch([e.prompt])[0]
    if begun:
        ids += written(begun) or tokenizer.continue_batch([begun])[0]
    text = "".join(e.text(eos) for e in exchanges) + begun
    return Asked(ids, text, stop_ids(style, tokenizer) | set(end_ids))


def _answer_ids(
    exchange: Exchange, tokenizer: Tokenizer, written: Callable[[str], Sequence[int] | None]
) -> Sequence[int]:
    """Returns the token ids of an answer: those that the model wrote, if they are known."""
    text = exchange.answer or ""
    known = written(text)
    return tokenizer.continue_batch([text])[0] if known is None else known
