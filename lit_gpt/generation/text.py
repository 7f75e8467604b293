"""The text of a row: whole characters as its tokens come, up to the stop string that ends it."""

from collections.abc import Sequence

from lit_gpt.generation.request import Request
from lit_gpt.generation.stops import StopStrings
from lit_gpt.tokenizer import StreamDecoder, Tokenizer

_CONTEXT = 16
"""Tokens before the text that decide on its first space, unless these have no text."""


class Text:
    """The text that a request's new tokens make."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.decoder = StreamDecoder(tokenizer, _context(tokenizer, request.ids))
        self.stops = StopStrings(request.stop, request.keeps_stop)
        self.has_tokens = False

    def push(self, token: int, may_end: bool) -> tuple[str, str | None]:
        """Returns the text that a new token adds, as far as it can be shown, and the stop string that ended it."""
        self.has_tokens = True
        return self.stops.push(self.decoder.push(token), may_end)

    def close(self, may_end: bool) -> tuple[str, str | None]:
        """Returns the rest of the text and the stop string that ended it, once there are no more tokens."""
        if not self.has_tokens:
            return "", None
        text, stop = self.stops.push(self.decoder.pending(), may_end)
        return (text, stop) if stop is not None else (text + self.stops.flush(), None)


def _context(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Returns the last of `ids`, enough to have a text: of thousands, decoding all would take longer than a step."""
    n = _CONTEXT
    while n < len(ids) and not tokenizer.decode(ids[-n:]):
        n *= 2
    return [int(i) for i in ids[-n:]]
