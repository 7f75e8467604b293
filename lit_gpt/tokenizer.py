"""Text to token ids and back: `tokenizer.json` or `tokenizer.model` behind one interface."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    Attributes:
        bos_id: begin-of-sequence token, None if the model has none.
        eos_id: end-of-sequence token, the one that training supervises.
        stop_ids: tokens that end a generated text; `eos_id` and those of generation_config.json.
        use_bos: whether the model's own configuration puts `bos_id` before every text.

    Raises:
        UserError: the folder has no tokenizer, or one without an end-of-sequence token.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        config = read_optional(checkpoint_dir / "tokenizer_config.json")
        generation = read_optional(checkpoint_dir / "generation_config.json")
        self.path, self.backend = open_backend(checkpoint_dir)
        self.bos_id = self.special_id(config, generation, "bos")
        eos_id = self.special_id(config, generation, "eos")
        if eos_id is None:
            raise UserError(f"{checkpoint_dir}: tokenizer_config.json names no eos_token; add one, training needs it")
        self.eos_id = eos_id
        stops = generation.get("eos_token_id")
        self.stop_ids = frozenset(
            [eos_id, *(stops if isinstance(stops, list) else [stops] if stops is not None else [])]
        )
        self.use_bos = self.bos_id is not None and self.wants_bos(config)

    def encode(self, text: str, bos: bool | None = None, eos: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            text: special tokens written out are recognised by tokenizer.json; tokenizer.model reads them as text.
            bos: begin with `bos_id`, unless the text itself does; None as the model is used to.
            eos: end with `eos_id`.
        """
        return self.frame(self.backend.encode(text), bos, eos)

    def encode_batch(self, texts: Sequence[str], bos: bool | None = None, eos: bool = False) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return [self.frame(ids, bos, eos) for ids in self.backend.encode_batch(texts)]

    def frame(self, ids: list[int], bos: bool | None, eos: bool) -> list[int]:
        """`ids` with the special tokens around them. The one place that adds them."""
        if self.use_bos if bos is None else bos:
            if self.bos_id is None:
                raise UserError(f"{self.path.parent}: the tokenizer has no begin-of-sequence token")
            if ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
        return [*ids, self.eos_id] if eos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self.backend.decode(list(ids))

    def token_to_id(self, token: str) -> int:
        """Raises: UserError if there is no such token."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(f"{self.path} has no token {token!r}")
        return found

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.vocab_size()

    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly if they come from equal files and frame a text equally."""
        content = self.path.read_bytes() + json.dumps([self.bos_id, self.eos_id, self.use_bos]).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def special_id(self, config: dict[str, Any], generation: dict[str, Any], role: str) -> int | None:
        """Id of the bos or eos token: as tokenizer_config.json names it, else by generation_config.json."""
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            return self.token_to_id(token)
        ids = generation.get(f"{role}_token_id", self.backend.special_id(role))
        return ids[0] if isinstance(ids, list) else ids

    def wants_bos(self, config: dict[str, Any]) -> bool:
        """What transformers would do: `add_bos_token` if given, else the tokenizer's own template, else Llama's way."""
        stated = config.get("add_bos_token")
        if stated is not None:
            return bool(stated)
        return self.backend.adds(self.bos_id) or (
            isinstance(self.backend, SentencePiece)
            and config.get("tokenizer_class", "LlamaTokenizer").startswith("Llama")
        )


class StreamDecoder:
    """Text of tokens that come one by one; never yields half a character.

    Args:
        context: ids before the first token; they decide on spaces and are not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self.decode = tokenizer.decode
        self.ids = list(context)
        self.start, self.shown = max(0, len(self.ids) - 6), len(self.ids)  # decoding starts a little before

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is not whole."""
        self.ids.append(token)
        text = self.pending()
        if text.endswith("\ufffd"):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return text

    def pending(self) -> str:
        """What has not been returned yet, whole or not; to be read once, at the end."""
        return self.decode(self.ids[self.start :])[len(self.decode(self.ids[self.start : self.shown])) :]


class HuggingFace:
    """tokenizer.json, through the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self.backend = Backend.from_file(str(path))
        except Exception as e:  # the library raises bare Exceptions
            raise UserError(f"{path} is truncated or damaged ({e}); get it again") from e
        self.backend.no_truncation()
        self.backend.no_padding()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def special_id(self, role: str) -> int | None:
        return None  # the file does not say which token plays which role

    def adds(self, token_id: int | None) -> bool:
        return self.backend.encode("", add_special_tokens=True).ids[:1] == [token_id]

    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()


class SentencePiece:
    """tokenizer.model, through the `sentencepiece` library."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self.backend = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as e:
            raise UserError(f"{path} is truncated or damaged ({str(e).splitlines()[0]}); get it again") from e

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.backend.encode(list(texts))

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        found = self.backend.piece_to_id(token)
        return found if self.backend.id_to_piece(found) == token else None

    def special_id(self, role: str) -> int | None:
        found = {"bos": self.backend.bos_id, "eos": self.backend.eos_id}[role]()
        return found if found >= 0 else None

    def adds(self, token_id: int | None) -> bool:
        return False

    def vocab_size(self) -> int:
        return self.backend.vocab_size()


def open_backend(checkpoint_dir: Path) -> tuple[Path, HuggingFace | SentencePiece]:
    """The tokenizer's file and its library. tokenizer.json comes first: it has the tokens that were added later.

    Raises:
        UserError: neither file is there.
    """
    for name, backend in (("tokenizer.json", HuggingFace), ("tokenizer.model", SentencePiece)):
        if (path := checkpoint_dir / name).is_file():
            return path, backend(path)
    raise UserError(f"{checkpoint_dir} has no tokenizer.json and no tokenizer.model; scripts/download.py fetches them")


def read_optional(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file. Raises: UserError if it is not JSON."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}); get it again") from e
