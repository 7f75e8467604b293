"""Decodes tokens into text while they are generated."""

from collections.abc import Sequence

from lit_gpt.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """A decoder of tokens that come one by one; it never returns half a character.

    It returns what decoding context and tokens together adds to the text of the context. For speed it decodes a short
    window: `start` is where the window begins, `shown` up to where its text has been returned.

    Args:
        context: ids before the first token; they decide on leading spaces and are not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self.decode = tokenizer.decode
        self.ids = list(context)
        self.start, self.shown = 0, len(self.ids)

    def push(self, token: int) -> str:
        """Returns the text that `token` completes; empty while a character is incomplete."""
        self.ids.append(token)
        text = self.pending()
        if text.endswith("\ufffd"):  # half a character, or a true U+FFFD, which is returned with what follows it
            return ""
        if self.decode(self.ids[self.shown :]):  # else the next token would be first in the window and lose its space
            self.start = self.shown
        self.shown = len(self.ids)
        return text

    def pending(self) -> str:
        """Returns the text not returned yet, incomplete characters included; to be called once, at the end."""
        before, text = self.decode(self.ids[self.start : self.shown]), self.decode(self.ids[self.start :])
        # a byte that fits no character can spoil the whole run of bytes it stands in (ByteFallback of tokenizer.json)
        return text[len(before) :] if text.startswith(before) else self.decode(self.ids[self.shown :])
