"""Defines the tokenizer of a checkpoint directory, the one place that adds special tokens to a text."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.tokenizer.backends import FILES, find_file
from lit_gpt.tokenizer.guarded import Guarded
from lit_gpt.tokenizer.settings import MOST_IDS, Settings, content, read_settings


class Tokenizer:
    """The tokenizer of a checkpoint directory.

    Attributes:
        bos_id: id of the begin-of-sequence token; None if the model has none.
        eos_id: id of the end-of-sequence token, the one that training supervises.
        stop_ids: ids of tokens that end a generated text: `eos_id` and those of generation_config.json or config.json.
        use_bos: whether the model's own configuration adds `bos_id` before every text.

    Raises:
        UserError: the directory has no tokenizer, a damaged one, or one without an end-of-sequence token.
    """

    def __init__(self, checkpoint_dir: Path) -> None:
        settings = read_settings(checkpoint_dir)
        self.path = find_file(checkpoint_dir)
        self.backend = Guarded(self.path, settings)
        self.bos_id = self.special_id(settings, "bos")
        eos_id = self.special_id(settings, "eos")
        if eos_id is None:
            raise UserError(f"{checkpoint_dir}: tokenizer_config.json names no eos_token; add one, training needs it")
        self.eos_id = eos_id
        stops = settings.model.get("eos_token_id", eos_id)
        stops = stops if isinstance(stops, list) else [stops]
        self.stop_ids = frozenset([eos_id, *(self.id_of(stop, "eos_token_id") for stop in stops)])
        self.use_bos = self.bos_id is not None and self.wants_bos(settings.config)

    def encode(self, text: str, bos: bool | None = None, eos: bool = False) -> list[int]:
        """Returns the token ids of `text`.

        Args:
            text: special tokens written out in it become their ids.
            bos: whether to begin with `bos_id`, unless the text itself does; None follows `use_bos`.
            eos: whether to end with `eos_id`.
        """
        return self.frame(self.backend.encode(text), bos, eos)

    def encode_batch(self, texts: Sequence[str], bos: bool | None = None, eos: bool = False) -> list[list[int]]:
        """Returns the token ids of each text, as `encode` does, computed on all cores."""
        return [self.frame(ids, bos, eos) for ids in self.backend.encode_batch(texts)]

    def continue_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text as it continues another one, without the mark of a beginning."""
        return self.backend.continue_batch(texts)

    def frame(self, ids: list[int], bos: bool | None, eos: bool) -> list[int]:
        """Returns `ids` with the special tokens around them; the one place that adds them.

        Raises:
            UserError: bos is asked for, and the tokenizer has none.
        """
        if self.use_bos if bos is None else bos:
            if self.bos_id is None:
                raise UserError(f"{self.path.parent}: the tokenizer has no begin-of-sequence token")
            if ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
        return [*ids, self.eos_id] if eos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, special tokens left out."""
        return self.backend.decode(list(ids))

    def token_to_id(self, token: str) -> int:
        """Returns the id of a token; raises UserError if there is no such token."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(f"{self.path} has no token {token!r}")
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id, as a text has it written out; None if there is none."""
        return self.backend.id_to_token(token_id)

    def added_tokens(self) -> list[str]:
        """Returns the tokens that are split off a text before the rest is tokenized, special or not."""
        return self.backend.added_tokens()

    @property
    def vocab_size(self) -> int:
        """Number of embedding rows that a model needs: one more than the largest id, added tokens included."""
        return self.backend.vocab_size()

    @property
    def n_pieces(self) -> int:
        """Number of embedding rows for the tokens that were not added later: one more than their largest id."""
        return self.backend.n_pieces()

    def fingerprint(self) -> str:
        """Returns a hash that two tokenizers share exactly if their files and their special tokens are equal."""
        framing = [self.bos_id, self.eos_id, self.use_bos, *self.backend.beyond_the_file()]
        return hashlib.sha256(self.path.read_bytes() + json.dumps(framing).encode()).hexdigest()[:16]

    def special_id(self, settings: Settings, role: str) -> int | None:
        """Returns the id of the bos or eos token, by name, else by the tokenizer's file, else by the model's config.

        `"bos_token": null` means that there is none (Qwen), whatever the model's config says.
        """
        named = f"{role}_token"
        if token := content(settings.names.get(named)):
            return self.token_to_id(token)
        if role == "bos" and named in settings.names and settings.names[named] is None:
            return None
        if (found := self.backend.special_id(role)) is not None:
            return found
        ids = settings.model.get(f"{role}_token_id")
        first = (ids or [None])[0] if isinstance(ids, list) else ids
        return None if first is None else self.id_of(first, f"{role}_token_id")

    def id_of(self, value: Any, key: str) -> int:
        """Returns an id that the model's config or generation config states under `key`.

        Raises:
            UserError: the value is no id.
        """
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < MOST_IDS:
            where = f"{self.path.parent}: {key} of config.json or generation_config.json"
            raise UserError(f"{where} is {value!r:.60}, which is no id of a token")
        return value

    def wants_bos(self, config: dict[str, Any]) -> bool:
        """Returns whether texts begin with bos: by `add_bos_token`, else tokenizer.json's template, else as Llama's do.

        transformers 5 ignores `add_bos_token` beside a tokenizer.json, and leaves bos out if a Llama tokenizer.model
        comes without the flag; version 4 and the training of these models agree with us.
        """
        stated = config.get("add_bos_token")
        if stated is not None:
            return bool(stated)
        return self.backend.adds(self.bos_id) or (
            self.path.name == FILES[1]
            and str(config.get("tokenizer_class") or "LlamaTokenizer").lower().startswith("llama")
        )
