"""How a chat template ends an answer, found out by rendering a short conversation."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError
from lit_gpt.prompts.turns import Turn
from lit_gpt.tokenizer import Tokenizer

MARK = "\ue000"
"""A character that no template contains."""
_ASKED, _ANSWERED, _AGAIN = f"{MARK}q", f"{MARK}a", f"{MARK}r"
"""Texts of the short conversation: a question, its answer, a second question."""


@dataclass(frozen=True)
class Ending:
    """The way in which a chat template ends an answer."""

    known: tuple[str, ...]
    """Tokens at which generation stops: the tokenizer's stop tokens, and `token`."""
    token: str | None = None
    """The token that ends an answer; None if the template writes none, and the end-of-sequence token is added."""
    late: bool = False
    """Whether `token` is written only with the turn after the answer, so that the last answer lacks it."""
    between: str = ""
    """Text between an answer and `token`; if there is no token, the text that the template puts after the last answer.
    """
    added: re.Pattern[str] = re.compile(r"(?!)")
    """Pattern that finds the tokenizer's added tokens, special ones among them, in a text."""

    def cut(self, tail: str, message: str) -> tuple[str, str | None]:
        """Splits what a template puts after a prompt into (answer, token that ends it); without one, (answer, None).

        Args:
            message: text of the answer; a token within it does not end it.
        """
        after = tail.find(message) + len(message) if message in tail else 0
        locations = [(at, -len(token), token) for token in self.known if (at := tail.find(token, after)) >= 0]
        if locations:
            at, _, token = min(locations)
            return tail[:at], token
        if not self.late and (last := self.closing(tail, after)):
            return last
        if self.token is None and self.between:
            tail = tail.removesuffix(self.between)
        return tail, None

    def closing(self, tail: str, after: int = 0) -> tuple[str, str] | None:
        """Returns (text, token) if `tail` closes with an added token, as an answer with tool calls may; None if not."""
        *_, last = (None, *self.added.finditer(tail, after))
        return (tail[: last.start()], last[0]) if last is not None and not tail[last.end() :].strip() else None

    def after(self, text: str, rest: str) -> tuple[str, str] | None:
        """Returns (answer, token) of an answer that the next turn ends or that closes with a token; None if neither.

        Args:
            rest: what the template shows after `text` once another turn follows.
        """
        if not self.late:
            return None
        space = rest[: len(rest) - len(rest.lstrip())]
        found = [token for token in self.known if rest.startswith(token, len(space))]
        return (text + space, max(found, key=len)) if found else self.closing(text)


def find_ending(render: Callable[[Sequence[Turn]], str], tokenizer: Tokenizer) -> Ending:
    """Returns how the template behind `render` ends an answer.

    A token that stands after the answer both when it is the last turn and when it is not is its end; of several, it is
    the one that the tokenizer knows as a stop token. A template that writes none after the last answer may write it at
    the start of the next turn (Apertus), or may use the beginning of that turn as the end (GLM-4, whose stop tokens say
    so).
    """
    stops = [tokenizer.id_to_token(i) for i in (tokenizer.eos_id, *sorted(tokenizer.stop_ids))]
    known = tuple(dict.fromkeys(token for token in stops if token))
    names = sorted({t for t in tokenizer.added_tokens() if t.strip()} | set(known), key=len, reverse=True)
    added = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    turns = [Turn("user", _ASKED), Turn("assistant", _ANSWERED), Turn("user", _AGAIN)]
    try:
        last, more = render(turns[:2]), render(turns)
    except LimitError:
        raise
    except UserError:  # the template refuses such a conversation
        return Ending(known, added=added)
    if _ANSWERED not in last or _AGAIN not in more.partition(_ANSWERED)[2]:
        return Ending(known, added=added)
    before, _, last = last.partition(_ANSWERED)
    more = more.partition(_ANSWERED)[2].partition(_AGAIN)[0]
    always = [m for m in added.finditer(last) if more[: m.end()] == last[: m.end()]]
    if found := (always or list(added.finditer(last))):
        end = next((m for m in found if m[0] in known), found[-1])
        return Ending((*known, end[0]), end[0], False, between=last[: end.start()], added=added)
    found = list(added.finditer(more))
    opens = set(added.findall(before.partition(_ASKED)[0]))
    if found and not more[: found[0].start()].strip():
        end = found[0]
        if end[0] in known or len(found) > 1 or end[0] not in opens:
            return Ending((*known, end[0]), end[0], True, between=more[: end.start()], added=added)
    return Ending(known, None, False, between=last, added=added)
