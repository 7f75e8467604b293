"""Wraps the two tokenizer libraries, `tokenizers` and `sentencepiece`, behind the same methods."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.settings import AddedToken, Settings, special_names


class _HuggingFace:
    """Backend for tokenizer.json, with the library `tokenizers`; tokens with a role are special, as in transformers."""

    def __init__(self, path: Path, settings: Settings) -> None:
        from tokenizers import AddedToken as Token
        from tokenizers import Tokenizer as Backend

        try:
            self.backend = Backend.from_file(str(path))
        except Exception as e:  # the library raises bare Exceptions
            raise UserError(f"{path} is truncated or damaged ({str(e)[:200]}); get it again") from e
        self.backend.no_truncation()
        self.backend.no_padding()
        known = {t.content for t in self.backend.get_added_tokens_decoder().values() if t.special}
        self.promoted = [n for n in special_names(settings.names) if n not in known and self.token_to_id(n) is not None]
        self.backend.add_special_tokens([Token(n, normalized=False, special=True) for n in self.promoted])
        self.marks_beginnings = self.encode("\na")[-1:] != self.encode("a")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, computed on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def continue_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text as it continues another one.

        A tokenizer that marks the beginning of a text encodes each behind an anchor, whose ids are then removed.
        """
        if not self.marks_beginnings:
            return self.encode_batch(texts)
        found: list[list[int]] = [[] for _ in texts]
        left = [i for i, text in enumerate(texts) if text]
        for anchor in ("\n", ".", "a", "\x02"):  # the first that shares no token with the text
            encodings = self.backend.encode_batch([anchor + texts[i] for i in left], add_special_tokens=False)
            starts = [sum(end <= 1 for _, end in e.offsets) for e in encodings]
            whole = [all(start >= 1 for start, _ in e.offsets[n:]) for e, n in zip(encodings, starts, strict=True)]
            for i, e, n, clean in zip(left, encodings, starts, whole, strict=True):
                found[i] = e.ids[n:] if clean else []
            left = [i for i, clean in zip(left, whole, strict=True) if not clean]
        for i in left:
            found[i] = self.encode(texts[i])
        return found

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, special tokens left out."""
        return self.backend.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token; None if there is none."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id; None if there is none."""
        return self.backend.id_to_token(token_id)

    def special_id(self, role: str) -> int | None:
        """Returns the bos id by the file's template, which may put it first; None for eos, which no template tells."""
        framed = self.backend.encode("a", add_special_tokens=True)
        return framed.ids[0] if role == "bos" and framed.special_tokens_mask[:1] == [1] else None

    def adds(self, token_id: int | None) -> bool:
        """Returns whether the file's template puts this token before a text."""
        return self.backend.encode("", add_special_tokens=True).ids[:1] == [token_id]

    def added_tokens(self) -> list[str]:
        """Returns the tokens that were added to the vocabulary, special or not."""
        return [t.content for t in self.backend.get_added_tokens_decoder().values()]

    def vocab_size(self) -> int:
        """Returns one more than the largest id, added tokens included."""
        return max(self.backend.get_vocab().values()) + 1

    def n_pieces(self) -> int:
        """Returns one more than the largest id, added tokens left out."""
        added = self.backend.get_added_tokens_decoder()
        return max((i for i in self.backend.get_vocab().values() if i not in added), default=-1) + 1

    def beyond_the_file(self) -> list[Any]:
        """Returns what decides on ids besides the content of tokenizer.json."""
        return self.promoted


FILES = ("tokenizer.json", "tokenizer.model")
"""Files that may hold the tokenizer of a folder, in order of precedence."""
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"
"""Protobuf of normalizer_spec {add_dummy_prefix: false}, appended to a model: fields that come twice are merged."""


class _SentencePiece:
    """A backend for tokenizer.model, with the `sentencepiece` library, and the tokens that were added to it.

    Control tokens (`<s>`), the unknown token and added ones become their ids where a text has them written out. A
    text without them has the ids that `sentencepiece` gives. Text after such a token follows transformers:
    `legacy: true` puts a space before it, as before the text itself; any other value does not.

    transformers 5 differs where spaces are: it does not add the space before a text, or after a token with `legacy`,
    if one is there, and it merges runs of spaces by the order of the vocabulary, not by score. It also gives ids to
    tokens that are named without one, and moves ids that leave a gap; ours are those of the files, for the weights
    have no other rows.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        from sentencepiece import SentencePieceProcessor as Backend

        try:
            proto = path.read_bytes()
            self.backend, self.bare = Backend(model_proto=proto), Backend(model_proto=proto + _WITHOUT_PREFIX)
        except (RuntimeError, OSError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"{path} is truncated or damaged ({reason}); get it again") from e
        self.legacy = bool(settings.config.get("legacy"))
        self.prefix = settings.config.get("add_prefix_space") is not False
        self.strips = self.backend.encode("a  b") == self.backend.encode("a b")
        self.tokens = self.special_and_added(settings)
        self.pattern = re.compile("|".join(t.pattern() for t in self.tokens))
        self.ids = {t.content: t.id for t in self.tokens}
        self.special = {t.id for t in self.tokens if t.special}
        self.shown = {t.id: t.content for t in self.tokens if not t.special}

    def special_and_added(self, settings: Settings) -> list[AddedToken]:
        """Returns the tokens that are split off a text first, longest first, so that the longest match wins."""
        sp = self.backend
        tokens = {sp.id_to_piece(i): i for i in range(sp.vocab_size()) if sp.is_control(i) or sp.is_unknown(i)}
        tokens |= {n: i for n in special_names(settings.names) if (i := self.piece_to_id(n)) is not None}
        declared = {t.id for t in settings.added} | {t.content for t in settings.added}
        rest = [AddedToken(n, i, True) for n, i in tokens.items() if not {n, i} & declared]
        return sorted([*settings.added, *rest], key=lambda t: (-len(t.content), t.id))

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Returns the ids of a text; `continued` if it follows other text, not a special token."""
        ids, end = [], 0
        for match in self.pattern.finditer(text):
            ids += self.encode_part(text[end : match.start()], end == 0, continued)
            # each alternative of the pattern is a group
            ids.append(self.tokens[match.lastindex - 1].id)  # pyright: ignore[reportOptionalOperand]
            end = match.end()
        return ids + self.encode_part(text[end:], end == 0, continued)

    def encode_part(self, text: str, first: bool, continued: bool) -> list[int]:
        """Returns the ids of a part without special tokens: the `first` of a text, or one after a special token."""
        if not (first and continued):
            return self.encode_plain(text, first)
        if not (self.strips and text[:1].isspace()):
            return self.bare.encode(text)
        mark = self.bare.encode("a")  # without it, the leading space would be stripped
        return self.bare.encode("a" + text)[len(mark) :]

    def encode_plain(self, text: str, first: bool) -> list[int]:
        """Returns the ids of a text without special tokens; `first` if it begins the whole text."""
        keeps_its_space = self.strips and text[:1].isspace()  # only the prefix puts it back
        prefixed = self.prefix and (first or self.legacy or keeps_its_space)
        return (self.backend if prefixed else self.bare).encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, computed on all cores where no text has special tokens."""
        plain = self.prefix and not any(map(self.pattern.search, texts))
        return self.backend.encode(list(texts)) if plain else [self.encode(t) for t in texts]

    def continue_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text as it continues another one."""
        plain = not self.strips and not any(map(self.pattern.search, texts))
        return self.bare.encode(list(texts)) if plain else [self.encode(t, continued=True) for t in texts]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids, special tokens left out."""
        n_pieces, text = self.backend.vocab_size(), ""
        visible = [i for i in ids if i not in self.special and (i < n_pieces or i in self.shown)]
        for added, run in [(added, list(run)) for added, run in groupby(visible, self.shown.__contains__)]:
            text += "".join(map(self.shown.__getitem__, run)) if added else self.decode_plain(run, first=not text)
        return text

    def decode_plain(self, ids: list[int], first: bool) -> str:
        """Returns the text of ids without added tokens; `first` if it begins the whole text."""
        if first and self.prefix:
            return self.backend.decode(ids)
        mark = self.backend.unk_id()  # the text after it keeps its leading space
        return self.backend.decode([mark, *ids])[len(self.backend.decode([mark])) :]

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token, added ones included; None if there is none."""
        return self.ids.get(token, self.piece_to_id(token))

    def piece_to_id(self, token: str) -> int | None:
        """Returns the id of a piece of the model; None if there is none."""
        found = self.backend.piece_to_id(token)
        return found if self.backend.id_to_piece(found) == token else None

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id, added ones included; None if there is none."""
        added = next((t.content for t in self.tokens if t.id == token_id), None)
        return added or (self.backend.id_to_piece(token_id) if 0 <= token_id < self.backend.vocab_size() else None)

    def special_id(self, role: str) -> int | None:
        """Returns the bos or eos id that the model names; None if it names none."""
        found = {"bos": self.backend.bos_id, "eos": self.backend.eos_id}[role]()
        return found if found >= 0 else None

    def adds(self, token_id: int | None) -> bool:
        """Returns False: a tokenizer.model has no template that puts tokens before a text."""
        return False

    def added_tokens(self) -> list[str]:
        """Returns the tokens that are split off a text first, special or not."""
        return [t.content for t in self.tokens]

    def vocab_size(self) -> int:
        """Returns one more than the largest id, added tokens included."""
        return max([self.n_pieces(), *(t.id + 1 for t in self.tokens)])

    def n_pieces(self) -> int:
        """Returns the number of pieces of the model, added tokens left out."""
        return self.backend.vocab_size()

    def beyond_the_file(self) -> list[Any]:
        """Returns what decides on ids besides the content of tokenizer.model."""
        return [[(t.pattern(), t.id) for t in self.tokens], self.legacy, self.prefix]


Backend = _HuggingFace | _SentencePiece


def load(path: Path, settings: Settings) -> Backend:
    """Returns the backend for a tokenizer's file, loaded in this process.

    Raises:
        UserError: the file is damaged.
    """
    return (_HuggingFace if path.name == FILES[0] else _SentencePiece)(path, settings)


def find_file(checkpoint_dir: Path) -> Path:
    """Returns a tokenizer's file; tokenizer.json comes first, since it has the tokens added later.

    Raises:
        UserError: neither file is there.
    """
    for name in FILES:
        if (path := checkpoint_dir / name).is_file():
            return path
    raise UserError(f"{checkpoint_dir} has no tokenizer.json and no tokenizer.model; scripts/download.py fetches them")
