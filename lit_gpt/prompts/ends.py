"""How a chat template ends an answer, found by showing it a short conversation."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn
from lit_gpt.tokenizer import Tokenizer

MARK = "\ue000"
"""A character that no template has."""
_ASKED, _ANSWERED, _AGAIN = f"{MARK}q", f"{MARK}a", f"{MARK}r"
"""Texts of the conversation that is shown."""


@dataclass(frozen=True)
class Ending:
    """How a template ends an answer."""

    known: tuple[str, ...]
    """Tokens at which generation stops: the tokenizer's, and `token`."""
    token: str | None = None
    """The token that ends an answer; None where the template writes none, and the end of sequence is put there."""
    late: bool = False
    """Whether that token comes with the turn after the answer only, and not after the last answer."""
    between: str = ""
    """What stands between an answer and `token`; without a token, what the template puts after the last answer."""
    added: re.Pattern[str] = re.compile(r"(?!)")
    """Finds the tokens that the tokenizer cuts out of a text."""

    def cut(self, tail: str, message: str) -> tuple[str, str | None]:
        """(answer, token that ends it) of what a template puts after the text that asks for it.

        Args:
            message: text of the answer; a token within it is no end.
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
        """(text, token) of a text that closes with a token, another one than after a plain answer, as calls may do."""
        *_, last = (None, *self.added.finditer(tail, after))
        return (tail[: last.start()], last[0]) if last is not None and not tail[last.end() :].strip() else None

    def after(self, text: str, rest: str) -> tuple[str, str] | None:
        """(answer, token) of a `text` that is ended late, by what comes after it, or closes with a token; else None.

        Args:
            rest: what comes after the text.
        """
        if not self.late:
            return None
        space = rest[: len(rest) - len(rest.lstrip())]
        found = [token for token in self.known if rest.startswith(token, len(space))]
        return (text + space, max(found, key=len)) if found else self.closing(text)


def find_ending(render: Callable[[Sequence[Turn]], str], tokenizer: Tokenizer) -> Ending:
    """How the template behind `render` ends an answer.

    A token that comes after the answer both where it is the last turn and where it is not is its end; of several, the
    one that the tokenizer knows as an end. A template that writes none after the last answer may begin the next turn
    with it (Apertus), or may have the beginning of that turn for an end (GLM-4, whose stop tokens say so).
    """
    stops = [tokenizer.id_to_token(i) for i in (tokenizer.eos_id, *sorted(tokenizer.stop_ids))]
    known = tuple(dict.fromkeys(token for token in stops if token))
    names = sorted({t for t in tokenizer.added_tokens() if t.strip()} | set(known), key=len, reverse=True)
    added = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    turns = [Turn("user", _ASKED), Turn("assistant", _ANSWERED), Turn("user", _AGAIN)]
    try:
        last, more = render(turns[:2]), render(turns)
    except UserError:  # it does not show such a conversation
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
