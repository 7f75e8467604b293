"""The texts of single tokens, as the answers' log-probabilities name them."""

import re
from collections.abc import Iterable

from lit_gpt.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
"""How SentencePiece writes a space in a token."""


def _byte_letters() -> dict[str, int]:
    """Returns the letter by which byte-level tokenizers since GPT-2 write each byte: itself, or one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(b): b for b in shown}
    hidden = [b for b in range(256) if b not in shown]
    return letters | {chr(0x100 + i): b for i, b in enumerate(hidden)}


class Pieces:
    """The bytes of each token of a tokenizer, special tokens written out; together they are the bytes of a text.

    A text that a SentencePiece tokenizer decodes lacks the space before its first word, which the token has.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.added = frozenset(tokenizer.added_tokens())
        """Tokens that are split off a text first, written out."""
        hidden = {tokenizer.token_to_id(token) for token in self.added}
        self.special = frozenset(i for i in hidden if not tokenizer.decode([i]))
        """Tokens that a decoded text leaves out."""
        self.letters = _byte_letters()
        space = tokenizer.backend.token_to_id("\u0120")
        self.is_byte_level = space is not None and tokenizer.decode([space]) == " "
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """Returns the bytes of a token; none for an id without a token."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._made(token_id)
        return found

    def _made(self, token_id: int) -> bytes:
        token = self.tokenizer.id_to_token(token_id)
        if token is None or token in self.added:
            return (token or "").encode()
        if self.is_byte_level:
            known = [self.letters.get(letter) for letter in token]
            return token.encode() if None in known else bytes(b for b in known if b is not None)
        if byte := _BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace(_SPACE, " ").encode()

    def text(self, token_id: int) -> str:
        """Returns a token as text, or its bytes in the form `bytes:\\xe2\\x96` if they are no whole characters."""
        data = self.of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in data)

    def joined(self, ids: Iterable[int]) -> str:
        """Returns the text of tokens, special ones written out and bytes that are no characters left out."""
        return b"".join(map(self.of, ids)).decode(errors="ignore")
