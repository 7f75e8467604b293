"""Converts between the tokenizer of a checkpoint folder and that of a gguf file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_gpt.config import Config
from lit_gpt.convert.gguf.reading import read
from lit_gpt.convert.gguf.sentencepiece import model_proto
from lit_gpt.convert.gguf.splitting import Splitting, find_splitting, recognize_splitting, steps_of
from lit_gpt.convert.gguf.templates import template_metadata, write_templates
from lit_gpt.errors import UserError
from lit_gpt.files import replace_with, write_text
from lit_gpt.prompts.chat_template import read_templates
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.tokenizer.settings import content, read_settings

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, numbered alike in llama.cpp and SentencePiece."""
_PREFIX = "tokenizer.ggml."
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""llama.cpp's name of each role of a special token."""
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0}
"""llama.cpp's default ids for a SentencePiece tokenizer. (For a byte-level tokenizer its default for bos and eos is 11,
Falcon's; if a file of another model lacks them, that is a mistake, which is reported when they are used.)"""
_ADDED_SCORE = -1000.0


def tokenizer_metadata(
    checkpoint_dir: Path, config: Config, templates: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the keys that hold the tokenizer of a folder, with a token for each row of the embeddings.

    Args:
        templates: text of each chat template by name, with "default" for the default one; None takes the folder's.

    Raises:
        UserError: there is no tokenizer, or llama.cpp is not known to have its kind.
    """
    tokenizer = Tokenizer(checkpoint_dir)
    settings = read_settings(checkpoint_dir)
    if (path := checkpoint_dir / "tokenizer.model").is_file():
        values = _sentencepiece_metadata(path, settings.added)
    else:
        values = _huggingface_metadata(checkpoint_dir / "tokenizer.json")
    tokens, kinds = values["tokens"], values["token_type"]
    for i in range(len(tokens), config.padded_vocab_size):
        tokens.append(f"[PAD{i}]")
        kinds.append(_UNUSED)
        values.get("scores", []).append(_ADDED_SCORE)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    for role in ("unk", "pad"):
        token = content(settings.names.get(f"{role}_token"))
        ids[role] = tokenizer.backend.token_to_id(token) if token else None
    values |= {f"{_ROLES[role]}_token_id": i for role, i in ids.items() if i is not None}
    values |= {"add_bos_token": tokenizer.use_bos, "add_eos_token": False}
    templates = read_templates(checkpoint_dir) if templates is None else templates
    return {_PREFIX + key: value for key, value in values.items()} | template_metadata(templates)


def special_tokens(metadata: Mapping[str, Any]) -> list[str]:
    """Returns the tokens that llama.cpp cuts out of a text before it splits the rest.

    Args:
        metadata: keys as `tokenizer_metadata` returns them.
    """
    pairs = zip(metadata[f"{_PREFIX}tokens"], metadata[f"{_PREFIX}token_type"], strict=True)
    return [token for token, kind in pairs if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN)]


def _sentencepiece_metadata(path: Path, added: list[Any]) -> dict[str, Any]:
    """Returns the keys for tokenizer.model and the tokens that were added to it."""
    from sentencepiece import SentencePieceProcessor

    sp = SentencePieceProcessor(model_file=str(path))
    tests: tuple[tuple[int, Callable[[int], bool]], ...] = (
        (_UNKNOWN, sp.is_unknown),
        (_CONTROL, sp.is_control),
        (_UNUSED, sp.is_unused),
        (_BYTE, sp.is_byte),
    )
    n = max([sp.vocab_size(), *(t.id + 1 for t in added)])
    tokens, scores, kinds = [f"[PAD{i}]" for i in range(n)], [_ADDED_SCORE] * n, [_UNUSED] * n
    for i in range(sp.vocab_size()):
        tokens[i], scores[i] = sp.id_to_piece(i), sp.get_score(i)
        kinds[i] = next((kind for kind, holds in tests if holds(i)), _NORMAL)
    for t in added:
        if not (t.id < sp.vocab_size() and kinds[t.id] != _NORMAL and tokens[t.id] == t.content):
            tokens[t.id], scores[t.id], kinds[t.id] = t.content, _ADDED_SCORE, _CONTROL if t.special else _USER_DEFINED
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "add_space_prefix": sp.encode("a", out_type=str)[0].startswith("\u2581"),
    }


def _huggingface_metadata(path: Path) -> dict[str, Any]:
    """Returns the keys for tokenizer.json; raises UserError if llama.cpp is not known to have its kind."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(path))
    saved = json.loads(backend.to_str())
    model = saved["model"]
    has_bytes = "ByteLevel" in json.dumps(saved["pre_tokenizer"] or {})
    if model["type"] != "BPE" or not (has_bytes or model.get("byte_fallback")):
        kind = f"{model['type']} without bytes" if model["type"] == "BPE" else model["type"]
        raise UserError(f"{path}: llama.cpp has no tokenizer of kind {kind}; use --format hf")
    special = {t["id"]: t for t in saved["added_tokens"]}
    vocabulary = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    n = max(vocabulary) + 1
    tokens = [vocabulary.get(i, f"[PAD{i}]") for i in range(n)]
    kinds = [_NORMAL if i in vocabulary else _UNUSED for i in range(n)]
    for i, t in special.items():
        kinds[i] = _CONTROL if t["special"] else _USER_DEFINED
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    values: dict[str, Any] = {"tokens": tokens, "token_type": kinds}
    if has_bytes:
        splitting = recognize_splitting(backend, str(path))
        values |= {"model": "gpt2", "pre": splitting.name, "merges": [" ".join(m) for m in merges]}
        return values
    return values | _scored_metadata(values, merges, saved)


def _scored_metadata(values: dict[str, Any], merges: list[list[str]], saved: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys for a tokenizer.json made from a tokenizer.model, whose merges are in the order of scores."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault("".join(merge), i)
    tokens, kinds = values["tokens"], list(values["token_type"])
    scores = [float(-rank[t]) if t in rank else -float(len(merges)) for t in tokens]
    for i, token in enumerate(tokens):
        if kinds[i] == _NORMAL and len(token) == 6 and token.startswith("<0x"):
            kinds[i], scores[i] = _BYTE, 0.0
        elif token == saved["model"].get("unk_token"):
            kinds[i], scores[i] = _UNKNOWN, 0.0
        elif kinds[i] != _NORMAL:
            scores[i] = 0.0 if kinds[i] == _CONTROL else _ADDED_SCORE
    steps = json.dumps([saved["normalizer"], saved["pre_tokenizer"]])
    prefixed = '"Prepend"' in steps or '"prepend_scheme": "first"' in steps or '"prepend_scheme": "always"' in steps
    return {"model": "llama", "pre": "default", "scores": scores, "token_type": kinds, "add_space_prefix": prefixed}


def write_tokenizer(path: Path, folder: Path) -> None:
    """Writes the tokenizer of a gguf file into `folder`: tokenizer.json or tokenizer.model, settings, chat templates.

    For what the file omits, llama.cpp's defaults are used (llama_vocab::impl::load in src/llama-vocab.cpp).

    Raises:
        UserError: the kind of tokenizer is not supported.
    """
    fields = read(path).fields

    def value(name: str, default: Any = None) -> Any:
        return fields[_PREFIX + name].contents() if _PREFIX + name in fields else default

    kind, pre = value("model"), value("pre", "default")
    splitting = find_splitting(pre)
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and splitting is None):
        raise UserError(f"{path}: a tokenizer of kind {kind}/{pre} is not rebuilt; put the model's tokenizer beside it")
    tokens, kinds = value("tokens"), value("token_type") or [_NORMAL] * len(value("tokens"))
    end = max(i + 1 for i, k in enumerate(kinds) if not (k == _UNUSED and tokens[i].startswith("[PAD")))
    tokens, kinds = tokens[:end], kinds[:end]  # the rows after it only pad the table
    defaults = _LLAMA_IDS if kind == "llama" else {}
    ids = {role: value(f"{name}_token_id", defaults.get(role)) for role, name in _ROLES.items()}
    ids = {role: i for role, i in ids.items() if i is not None and i < end}
    adds_bos = kind == "llama" or (splitting is not None and splitting.adds_bos)
    config: dict[str, Any] = {"add_bos_token": value("add_bos_token", adds_bos)}
    config |= {f"{role}_token": tokens[i] for role, i in ids.items()}
    if kind == "llama":
        scores, prefix = value("scores", [0.0] * end)[:end], value("add_space_prefix", True)
        proto = model_proto(tokens, scores, kinds, ids=ids, add_prefix=prefix)
        replace_with(folder / "tokenizer.model", lambda temporary: temporary.write_bytes(proto))
        config |= {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": prefix}
        config["added_tokens_decoder"] = {
            str(i): {"content": t, "special": k == _CONTROL, "normalized": False}
            for i, (t, k) in enumerate(zip(tokens, kinds, strict=True))
            if k in (_CONTROL, _USER_DEFINED)
        }
    else:
        assert splitting is not None
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_text(folder / "tokenizer.json", _byte_level(tokens, kinds, value("merges", []), splitting).to_str())
    write_templates(fields, folder)
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def _byte_level(tokens: list[str], kinds: list[int], merges: list[str], splitting: Splitting) -> Any:
    """Returns a byte-level tokenizer of the library `tokenizers`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = {t: i for i, (t, k) in enumerate(zip(tokens, kinds, strict=True)) if k != _UNUSED}
    pairs: Any = [tuple(m.split(" ")) for m in merges]  # the library says which is no pair
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=splitting.ignore_merges))
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = steps_of(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    for kind, add in ((_CONTROL, tokenizer.add_special_tokens), (_USER_DEFINED, tokenizer.add_tokens)):
        named = [t for t, k in zip(tokens, kinds, strict=True) if k == kind]
        add([AddedToken(t, special=kind == _CONTROL, normalized=False) for t in named])
    return tokenizer
