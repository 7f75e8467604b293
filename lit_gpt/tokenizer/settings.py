"""Reads special and added tokens from the JSON files next to a tokenizer."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError

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
        UserError: a file is not a JSON object, or an added token has no id or no content.
    """
    config = read_optional(checkpoint_dir / "tokenizer_config.json")
    older = read_optional(checkpoint_dir / "special_tokens_map.json")
    current = bool(config.get("added_tokens_decoder"))
    names = older | config if current else config | older
    model: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        model |= {k: v for k, v in read_optional(checkpoint_dir / name).items() if v is not None}
    return Settings(config, names, model, _read_added(checkpoint_dir, config, special_names(names)))


def _read_added(checkpoint_dir: Path, config: dict[str, Any], special: list[str]) -> list[AddedToken]:
    """Reads the tokens of `added_tokens_decoder`, else added_tokens.json; raises UserError if one is damaged."""
    declared, path = config.get("added_tokens_decoder"), checkpoint_dir / "tokenizer_config.json"
    if not declared:
        path = checkpoint_dir / "added_tokens.json"
        declared = {i: {"content": token} for token, i in read_optional(path).items()}
    try:
        return [
            AddedToken(
                content=t["content"],
                id=_id(i),
                special=t["content"] in special or bool(t.get("special")),
                lstrip=bool(t.get("lstrip")),
                rstrip=bool(t.get("rstrip")),
                single_word=bool(t.get("single_word")),
            )
            for i, t in declared.items()
            if _text(t["content"])
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        reason = f"{e!r:.200}"
        raise UserError(f"{path}: an added token is not given as id and content ({reason}); get the file again") from e


def _id(value: Any) -> int:
    """Returns the id of a token; raises ValueError if it is no id."""
    if not 0 <= (found := int(value)) < MOST_IDS:
        raise ValueError(f"{found} is no id")
    return found


def _text(value: Any) -> str:
    """Returns a text; raises TypeError if the value is none."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def special_names(names: dict[str, Any]) -> list[str]:
    """Returns every token that has a role, each once."""
    found: list[str | None] = []
    for role, value in names.items():
        if role.endswith("_special_tokens"):
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            found += map(content, values)
        elif role.endswith("_token"):
            found.append(content(value))
    return list(dict.fromkeys(filter(None, found)))


def content(token: Any) -> str | None:
    """Returns a token as text, taken out of its object if need be; None if it is no token (`add_bos_token`)."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def read_optional(path: Path) -> dict[str, Any]:
    """Reads a JSON object, empty if there is no such file; raises UserError if it is not a JSON object."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON ({e}); get it again") from e
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object but a {type(found).__name__}; get it again")
    return found
