"""A tokenizer's backend behind limits of time and memory: what loads the file and encodes runs in another process."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.foreign import Limits, RaisedError, Remote
from lit_gpt.tokenizer.backends import Backend, load
from lit_gpt.tokenizer.hosted import ids_of
from lit_gpt.tokenizer.settings import Settings

_HOSTED = "lit_gpt.tokenizer.hosted:_Hosted"
_LOAD_SECONDS, _ENCODE_SECONDS = 8, 3
"""Seconds that loading a file or encoding texts may take, and more with their size. Several texts that take too long
are encoded again one by one, and both together end within 10 s."""
_LOAD_RATE, _ENCODE_RATE = 2**20, 20_000
"""Bytes of a file, and characters of texts, for which each another second is allowed; libraries are 20 times faster."""
_MEMORY = 2**29
_LOAD_MEMORY, _ENCODE_MEMORY = 16, 500
"""Bytes of memory that are allowed for each byte of a file, and for each character of texts."""
_CHUNK = 2**20
"""Most characters that are encoded in one call, unless one text has more; limits grow with them."""
_FIRST_DECODES, _FEW_IDS = 24, 1000
"""Texts of at most so many ids that are decoded in the other process first: the first words of an answer need not wait
until the file is loaded in this one, which takes 0.2 s."""
_MOST_LOOKUPS = 100
"""Tokens and ids that are looked up in the other process, before the file is loaded in this one as well."""


class Guarded:
    """A backend whose file is loaded and whose texts are encoded within limits of time and memory.

    Both happen in the process for foreign code. This process loads the file, too, where many texts are decoded or many
    tokens are looked up: that runs no expression of the file over texts from outside, and is called for each token.

    Raises:
        UserError: the file is damaged, exceeds the limits, or ends the process.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        n_bytes = path.stat().st_size
        self._loading = Limits(_LOAD_SECONDS + n_bytes / _LOAD_RATE, _MEMORY + _LOAD_MEMORY * n_bytes)
        self._known: dict[tuple[str, str | int], Any] = {}
        self._n_decoded = 0
        try:
            self._remote = Remote(f"the tokenizer {path}", _HOSTED, path, settings, limits=self._loading)
            self.facts = self._remote.call("facts", limits=self._loading, doing="when it is loaded")
        except RaisedError as e:
            raise self._failed(e) from e

    def _failed(self, e: RaisedError) -> UserError:
        """Returns the error for an exception of the library."""
        return UserError(f"{self.path}: the tokenizer library fails ({' '.join(str(e).split())[:300]})")

    @cached_property
    def local(self) -> Backend:
        """The backend in this process."""
        return load(self.path, self.settings)

    def _encode(self, method: str, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids that a method of the backend makes of each of several texts.

        Raises:
            LimitError: it takes too much time or memory, or ends the process.
            UserError: the library fails on the texts.
        """
        n = sum(map(len, texts))
        limits = Limits(_ENCODE_SECONDS + n / _ENCODE_RATE, _MEMORY + _ENCODE_MEMORY * n)
        several = "a text" if len(texts) == 1 else f"{len(texts):,} texts"
        try:
            found = self._remote.call(
                "encode", method, texts, limits=limits, doing=f"for {several} of {n:,} characters"
            )
        except RaisedError as e:
            if any(map(_has_half, texts)):
                raise UserError("a text has half of a character (a lone surrogate), which no tokenizer takes") from e
            raise self._failed(e) from e
        return ids_of(found)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens added."""
        return self._encode("encode_batch", [text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, computed on all cores."""
        return [ids for chunk in _chunks(texts) for ids in self._encode("encode_batch", chunk)]

    def continue_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text as it continues another one."""
        return [ids for chunk in _chunks(texts) for ids in self._encode("continue_batch", chunk)]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, special tokens left out."""
        if "local" not in vars(self) and self._n_decoded < _FIRST_DECODES and len(ids) <= _FEW_IDS:
            self._n_decoded += 1
            return self._asked("decode", ids)
        return self.local.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token; None if there is none."""
        return self._looked_up("token_to_id", token)

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id; None if there is none."""
        return self._looked_up("id_to_token", token_id)

    def _looked_up(self, method: str, key: str | int) -> Any:
        """Returns what one of the two methods above returns, from memory if it was asked before."""
        if (method, key) in self._known:
            return self._known[method, key]
        if "local" in vars(self) or len(self._known) >= _MOST_LOOKUPS:
            return getattr(self.local, method)(key)
        found = self._known[method, key] = self._asked(method, key)
        return found

    def _asked(self, method: str, *args: Any) -> Any:
        """Returns what a method of the backend in the other process returns.

        Raises:
            UserError: the library fails.
        """
        try:
            return self._remote.call("run", method, *args, limits=self._loading, doing="when it is asked for tokens")
        except RaisedError as e:
            raise self._failed(e) from e

    def special_id(self, role: str) -> int | None:
        """Returns the bos or eos id that the file names; None if it names none."""
        return self.facts["special"][role]

    def adds(self, token_id: int | None) -> bool:
        """Returns whether the file's template puts this token before a text."""
        return self._asked("adds", token_id)

    def added_tokens(self) -> list[str]:
        """Returns the tokens that were added to the vocabulary, special or not."""
        return self.facts["added_tokens"]

    def vocab_size(self) -> int:
        """Returns one more than the largest id, added tokens included."""
        return self.facts["vocab_size"]

    def n_pieces(self) -> int:
        """Returns one more than the largest id, added tokens left out."""
        return self.facts["n_pieces"]

    def beyond_the_file(self) -> list[Any]:
        """Returns what decides on ids besides the content of the file."""
        return self.facts["beyond_the_file"]


def _has_half(text: str) -> bool:
    """Returns whether a text has a lone surrogate: half of a character that UTF-16 writes in two parts."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yields the texts in order, in lists of at most _CHUNK characters or of one text."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > _CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk
