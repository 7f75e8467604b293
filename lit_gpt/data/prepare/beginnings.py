"""The beginnings of texts that are far longer than a sample may be, so that the rest is never tokenized."""

from collections.abc import Sequence
from dataclasses import replace

from lit_gpt.prompts import Exchange
from lit_gpt.tokenizer import Tokenizer

_FAR_LONGER, _LONG = 32, 100_000
"""Characters for each token that a sample may have, and in all, above which a row is measured by its beginning first:
texts have about 4 characters a token."""
_MORE = 16
"""Tokens above the limit that a beginning must have: those at its end may be others within the whole text."""


class Beginnings:
    """Finds the beginnings of rows that are far longer than a sample may be.

    Args:
        limit: most tokens of a sample.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit

    def of(self, exchanges: Sequence[Exchange]) -> list[Exchange] | None:
        """Returns the exchanges with texts only up to where they have more tokens than a sample may have.

        None if they are not far longer than a sample may be.
        """
        texts = [text for e in exchanges for text in (e.prompt, e.answer or "")]
        n_characters, size = sum(map(len, texts)), 8 * self.limit
        if n_characters <= max(_FAR_LONGER * self.limit, _LONG):
            return None
        while size < n_characters:
            short, left = [], size
            for text in texts:
                short.append(text[:left])
                left -= len(short[-1])
            n_tokens = sum(map(len, self.tokenizer.encode_batch([text for text in short if text], bos=False)))
            if n_tokens > self.limit + _MORE:
                pairs = zip(exchanges, short[::2], short[1::2], strict=True)
                return [replace(e, prompt=prompt, answer=answer) for e, prompt, answer in pairs]
            size *= 4
        return None

    def of_text(self, text: str) -> str:
        """Returns a text only up to where it has more tokens than a sample may have, if it is far longer."""
        beginning = self.of([Exchange(text, "")])
        return beginning[0].prompt if beginning else text
