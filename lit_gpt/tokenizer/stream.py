"""Text of tokens while they are generated."""

from collections.abc import Sequence

from lit_gpt.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Text of tokens that come one by one; never yields half a character.

    What it yields is what decoding context and tokens together adds to the text of the context. It decodes a short
    window: `start` is where the window begins, `shown` up to where its text has been returned.

    Args:
        context: ids before the first token; they decide on spaces and are not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self.decode = tokenizer.decode
        self.ids = list(context)
        self.start, self.shown = 0, len(self.ids)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is not whole."""
        self.ids.append(token)
        text = self.pending()
        if text.endswith("\ufffd"):  # half a character, or a true U+FFFD, which comes out with what follows it
            return ""
        if self.decode(self.ids[self.shown :]):  # else the next token would be first in the window and lose its space
            self.start = self.shown
        self.shown = len(self.ids)
        return text

    def pending(self) -> str:
        """What has not been returned yet, whole or not; to be read once, at the end."""
        before, text = self.decode(self.ids[self.start : self.shown]), self.decode(self.ids[self.start :])
        # a byte that fits no character can spoil the whole run of bytes it stands in (ByteFallback of tokenizer.json)
        return text[len(before) :] if text.startswith(before) else self.decode(self.ids[self.shown :])
