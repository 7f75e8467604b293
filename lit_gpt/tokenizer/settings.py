"""Reads special and added tokens from the JSON files next to a tokenizer."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError, shown
from lit_gpt.records import fits, read_object, require_types

_IDS = {"bos_token_id": int | list[int] | None, "eos_token_id": int | list[int] | None}
"""Types of what is read of config.json and generation_config.json."""
_CONFIG = {"tokenizer_class": str | None, "added_tokens_decoder": dict | None}
"""Types of what is read of tokenizer_config.json, where not any value will do."""

MOST_IDS = 2**24
"""Most ids that a tokenizer may have; the largest vocabularies have a sixtieth of that."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is split off a text before the rest is tokenized.

    Attributes:
        special: whether decoded text leaves it out.
        lstrip, rstrip: whether it includes the whitespace before, after it.
        single_word: whether it must not touch a letter or digit.
    """

    content: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    def pattern(self) -> str:
        """Returns a regular expression whose one group is the token."""
        token = f"({re.escape(self.content)})"
        token = rf"(?<!\w){token}(?!\w)" if self.single_word else token
        return (r"\s*" if self.lstrip else "") + token + (r"\s*" if self.rstrip else "")


@dataclass(frozen=True)
class Settings:
    """The content of the JSON files next to a tokenizer.

    Attributes:
        config: content of tokenizer_config.json.
        names: role (`eos_token`, `additional_special_tokens` ...) -> token or tokens.
        model: content of config.json, overridden by generation_config.json, without nulls.
        added: tokens that were added after tokenizer.model was made.
    """

    config: dict[str, Any]
    names: dict[str, Any]
    model: dict[str, Any]
    added: list[AddedToken]


def read_settings(checkpoint_dir: Path) -> Settings:
    """Reads the files; as in transformers, `added_tokens_decoder` takes precedence over the older files.

    Raises:
        UserError: a file is not a JSON object, a value is of another type, or an added token has no id or no content.
    """
    config = read_optional(checkpoint_dir / "tokenizer_config.json")
    require_types(str(checkpoint_dir / "tokenizer_config.json"), config, _CONFIG)
    older = read_optional(checkpoint_dir / "special_tokens_map.json")
    current = bool(config.get("added_tokens_decoder"))
    names = older | config if current else config | older
    model: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        stated = read_optional(checkpoint_dir / name)
        _require_ids(stated, checkpoint_dir / name)
        model |= {k: v for k, v in stated.items() if v is not None}
    return Settings(config, names, model, _read_added(checkpoint_dir, config, special_names(names)))


def _require_ids(stated: dict[str, Any], path: Path) -> None:
    """Checks that the special tokens' ids in a file are ids; raises UserError if one is not."""
    require_types(str(path), stated, _IDS)
    for key in _IDS:
        value = stated.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if value == [] or any(not 0 <= i < MOST_IDS for i in ids):
            raise UserError(f"{path}: {key}={shown(value)} is not the id of a token; get the file again")


def _read_added(checkpoint_dir: Path, config: dict[str, Any], special: list[str]) -> list[AddedToken]:
    """Reads the tokens of `added_tokens_decoder`, else added_tokens.json; raises UserError if one is damaged."""
    declared, path = config.get("added_tokens_decoder"), checkpoint_dir / "tokenizer_config.json"
    if not declared:
        path = checkpoint_dir / "added_tokens.json"
        entries = [(i, {"content": token}) for token, i in read_optional(path).items()]
    else:
        entries = list(declared.items())
    known, added = set(special), []
    for key, t in entries:
        number = _id_of(key)
        if number is None or not isinstance(t, dict) or not isinstance(t.get("content"), str):
            raise UserError(
                f"{path}: an added token is not given as id and content ({shown(key)}: {shown(t)}); get the file again"
            )
        if t["content"]:
            flags = {name: bool(t.get(name)) for name in ("lstrip", "rstrip", "single_word")}
            is_special = t["content"] in known or bool(t.get("special"))
            added.append(AddedToken(t["content"], id=number, special=is_special, **flags))
    return added


def _id_of(value: Any) -> int | None:
    """Returns the id of a token that a number or its digits are; None if they are none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    return value if isinstance(value, int) and fits(int, value) and 0 <= value < MOST_IDS else None


def special_names(names: dict[str, Any]) -> list[str]:
    """Returns every token that has a role, each once."""
    found: list[str | None] = []
    for role, value in names.items():
        if role.endswith("_special_tokens"):
            tokens = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            found += map(content, tokens)
        elif role.endswith("_token"):
            found.append(content(value))
    return list(dict.fromkeys(filter(None, found)))


def content(token: Any) -> str | None:
    """Returns a token as text, taken out of its object if need be; None if it is no token (`add_bos_token`)."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def read_optional(path: Path) -> dict[str, Any]:
    """Reads a JSON object, empty if there is no such file; raises UserError if it is not a JSON object."""
    return read_object(path) if path.is_file() else {}
