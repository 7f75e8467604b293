"""Reads the tokens of a gguf file, with their scores, kinds and roles, and checks that they belong together."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_gpt.errors import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, numbered alike in llama.cpp and SentencePiece."""
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""llama.cpp's name of each role of a special token."""
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0}
"""llama.cpp's default ids for a SentencePiece tokenizer. (For a byte-level tokenizer its default for bos and eos is 11,
Falcon's; if a file of another model lacks them, that is a mistake, which is reported when they are used.)"""
_NO_TOKEN = 2**32 - 1
"""Id by which some files say that there is no token."""


class Vocabulary(NamedTuple):
    """The tokens of a file, without those after the last one that only pad the table."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    """Scores by which SentencePiece merges; zeros if the file has none."""
    merges: list[str]
    """Pairs of tokens with a space between them, in the order in which byte-level tokenizers merge them."""
    ids: dict[str, int]
    """Id of the token of each role, a key of ROLES."""
    adds_bos: bool | None
    """Whether bos is put before a text; None if the file does not say."""
    adds_prefix: bool
    """Whether SentencePiece puts a space before a text."""

    def of_kind(self, kind: int) -> list[str]:
        """Returns the tokens of a kind."""
        return [t for t, k in zip(self.tokens, self.kinds, strict=True) if k == kind]

    def indices(self) -> dict[str, int]:
        """Returns the id of each token that is in use."""
        return {t: i for i, (t, k) in enumerate(zip(self.tokens, self.kinds, strict=True)) if k != UNUSED}

    def settings(self, adds_bos: bool, is_scored: bool) -> dict[str, Any]:
        """Returns the content of tokenizer_config.json.

        Args:
            adds_bos: whether bos is put before a text where the file does not say.
            is_scored: whether the tokenizer is SentencePiece's.
        """
        config: dict[str, Any] = {"add_bos_token": adds_bos if self.adds_bos is None else self.adds_bos}
        config |= {f"{role}_token": self.tokens[i] for role, i in self.ids.items()}
        if not is_scored:
            return config | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": self.adds_prefix}
        config["added_tokens_decoder"] = {
            str(i): {"content": t, "special": k == CONTROL, "normalized": False}
            for i, (t, k) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if k in (CONTROL, USER_DEFINED)
        }
        return config


def read_vocabulary(values: Mapping[str, Any], prefix: str, is_scored: bool) -> Vocabulary:
    """Returns the vocabulary of a file.

    Args:
        values: the file's keys with their values.
        prefix: what the keys of the tokenizer begin with.
        is_scored: whether the tokenizer is SentencePiece's.

    Raises:
        ValueError: a list is missing, of another type or length, or an id or token is impossible.
    """
    tokens = _list(values, f"{prefix}tokens", str)
    n = len(tokens)
    kinds = _list(values, f"{prefix}token_type", int, n, default=[NORMAL] * n)
    scores = _list(values, f"{prefix}scores", float, n, default=[0.0] * n) if is_scored else [0.0] * n
    if strange := [k for k in kinds if not 0 <= k <= BYTE]:
        raise ValueError(f"{prefix}token_type holds {strange[0]}, which is no kind of token")
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"{prefix}scores holds what is no number")
    end = max((i + 1 for i, k in enumerate(kinds) if not (k == UNUSED and tokens[i].startswith("[PAD"))), default=0)
    if not end:
        raise ValueError("none of its tokens is in use")
    _require_different(tokens, kinds)
    adds_bos, adds_prefix = values.get(f"{prefix}add_bos_token"), values.get(f"{prefix}add_space_prefix", True)
    if not isinstance(adds_bos, bool | None) or not isinstance(adds_prefix, bool):
        raise ValueError(f"{prefix}add_bos_token or add_space_prefix is not true or false")
    merges = [] if is_scored else _list(values, f"{prefix}merges", str, default=[])
    for merge in merges:
        if merge.count(" ") != 1:
            raise ValueError(f"{prefix}merges holds {shown(merge)}, which is no pair")
    return Vocabulary(
        tokens=tokens[:end],
        kinds=kinds[:end],
        scores=scores[:end],
        merges=merges,
        ids=_ids(values, prefix, n=n, end=end, defaults=_LLAMA_IDS if is_scored else {}),
        adds_bos=adds_bos,
        adds_prefix=adds_prefix,
    )


def _list(
    values: Mapping[str, Any], key: str, kind: type, n: int | None = None, default: list[Any] | None = None
) -> list[Any]:
    """Returns a list of a file; raises ValueError if it is missing, of another type, or has not n entries."""
    found = values.get(key, default)
    if found is None:
        raise ValueError(f"it has no {key}")
    if not isinstance(found, list) or not all(type(x) is kind for x in found):
        raise ValueError(f"{key} is not a list of {kind.__name__}")
    if n is not None and len(found) != n:
        raise ValueError(f"{key} has {len(found):,} entries for {n:,} tokens")
    return found


def _require_different(tokens: list[str], kinds: list[int]) -> None:
    """Checks that no two tokens in use are the same, since one could not be told from the other."""
    seen: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != UNUSED and seen.setdefault(token, i) != i:
            raise ValueError(f"the tokens {seen[token]} and {i} are both {shown(token)}")


def _ids(values: Mapping[str, Any], prefix: str, n: int, end: int, defaults: Mapping[str, int]) -> dict[str, int]:
    """Returns the id of each role that has a token.

    Args:
        n: number of tokens.
        end: number of tokens without those that pad the table, none of which has a role.
        defaults: ids of the roles that the file does not state.
    """
    found = {}
    for role, name in ROLES.items():
        key = f"{prefix}{name}_token_id"
        i = values.get(key)
        if key in values and i != _NO_TOKEN and not (type(i) is int and 0 <= i < n):
            raise ValueError(f"{key}={shown(i)} is none of its {n:,} tokens")
        i = defaults.get(role) if key not in values else i
        if i is not None and i < end:
            found[role] = i
    return found
