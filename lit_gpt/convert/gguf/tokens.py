"""Converts between the tokenizer of a checkpoint folder and that of a gguf file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_gpt.config import Config
from lit_gpt.convert.gguf.parts import AGAIN
from lit_gpt.convert.gguf.reading import read
from lit_gpt.convert.gguf.sentencepiece import model_proto
from lit_gpt.convert.gguf.splitting import Splitting, find_splitting, recognize_splitting, steps_of
from lit_gpt.convert.gguf.templates import TEMPLATES, check_templates, template_metadata, write_templates
from lit_gpt.convert.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    ROLES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    read_vocabulary,
)
from lit_gpt.errors import UserError, one_line
from lit_gpt.files import replace_with, write_text
from lit_gpt.files.tensors import first_line
from lit_gpt.prompts.chat_template import read_templates
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.tokenizer.settings import content, read_settings

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", *TEMPLATES)
"""Names in a folder under which `write_tokenizer` writes."""
_PREFIX = "tokenizer.ggml."
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
        kinds.append(UNUSED)
        values.get("scores", []).append(_ADDED_SCORE)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    for role in ("unk", "pad"):
        token = content(settings.names.get(f"{role}_token"))
        ids[role] = tokenizer.backend.token_to_id(token) if token else None
    values |= {f"{ROLES[role]}_token_id": i for role, i in ids.items() if i is not None}
    values |= {"add_bos_token": tokenizer.use_bos, "add_eos_token": False}
    templates = read_templates(checkpoint_dir) if templates is None else templates
    return {_PREFIX + key: value for key, value in values.items()} | template_metadata(templates)


def special_tokens(metadata: Mapping[str, Any]) -> list[str]:
    """Returns the tokens that llama.cpp cuts out of a text before it splits the rest.

    Args:
        metadata: keys as `tokenizer_metadata` returns them.
    """
    pairs = zip(metadata[f"{_PREFIX}tokens"], metadata[f"{_PREFIX}token_type"], strict=True)
    return [token for token, kind in pairs if kind in (CONTROL, USER_DEFINED, UNKNOWN)]


def _sentencepiece_metadata(path: Path, added: list[Any]) -> dict[str, Any]:
    """Returns the keys for tokenizer.model and the tokens that were added to it."""
    from sentencepiece import SentencePieceProcessor

    sp = SentencePieceProcessor(model_file=str(path))
    tests: tuple[tuple[int, Callable[[int], bool]], ...] = (
        (UNKNOWN, sp.is_unknown),
        (CONTROL, sp.is_control),
        (UNUSED, sp.is_unused),
        (BYTE, sp.is_byte),
    )
    n = max([sp.vocab_size(), *(t.id + 1 for t in added)])
    tokens, scores, kinds = [f"[PAD{i}]" for i in range(n)], [_ADDED_SCORE] * n, [UNUSED] * n
    for i in range(sp.vocab_size()):
        tokens[i], scores[i] = sp.id_to_piece(i), sp.get_score(i)
        kinds[i] = next((kind for kind, holds in tests if holds(i)), NORMAL)
    for t in added:
        if not (t.id < sp.vocab_size() and kinds[t.id] != NORMAL and tokens[t.id] == t.content):
            tokens[t.id], scores[t.id], kinds[t.id] = t.content, _ADDED_SCORE, CONTROL if t.special else USER_DEFINED
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
    kinds = [NORMAL if i in vocabulary else UNUSED for i in range(n)]
    for i, t in special.items():
        kinds[i] = CONTROL if t["special"] else USER_DEFINED
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
        if kinds[i] == NORMAL and len(token) == 6 and token.startswith("<0x"):
            kinds[i], scores[i] = BYTE, 0.0
        elif token == saved["model"].get("unk_token"):
            kinds[i], scores[i] = UNKNOWN, 0.0
        elif kinds[i] != NORMAL:
            scores[i] = 0.0 if kinds[i] == CONTROL else _ADDED_SCORE
    steps = json.dumps([saved["normalizer"], saved["pre_tokenizer"]])
    prefixed = '"Prepend"' in steps or '"prepend_scheme": "first"' in steps or '"prepend_scheme": "always"' in steps
    return {"model": "llama", "pre": "default", "scores": scores, "token_type": kinds, "add_space_prefix": prefixed}


def write_tokenizer(path: Path, folder: Path) -> None:
    """Writes the tokenizer of a gguf file into `folder`: tokenizer.json or tokenizer.model, settings, chat templates.

    For what the file omits, llama.cpp's defaults are used (llama_vocab::impl::load in src/llama-vocab.cpp).

    Raises:
        UserError: the tokenizer is damaged, or its kind is not supported.
    """
    values = read(path).values
    kind, pre = values.get(f"{_PREFIX}model"), values.get(f"{_PREFIX}pre", "default")
    splitting = find_splitting(pre) if isinstance(pre, str) else None
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and splitting is None):
        stated = one_line(f"{kind}/{pre}", 100)
        raise UserError(f"{path}: a tokenizer of kind {stated} is not rebuilt; put the model's tokenizer beside it")
    try:
        vocabulary = read_vocabulary(values, _PREFIX, is_scored=kind == "llama")
        name, content = _scored(vocabulary) if kind == "llama" else _byte_level(vocabulary, splitting)
        check_templates(values)
    except ValueError as e:
        raise UserError(
            f"{path}: its tokenizer is damaged ({first_line(e)}); {AGAIN}, or put the model's tokenizer beside it"
        ) from e
    adds_bos = kind == "llama" or (splitting is not None and splitting.adds_bos)
    config = vocabulary.settings(adds_bos, is_scored=kind == "llama")
    replace_with(folder / name, lambda temporary: temporary.write_bytes(content))
    write_templates(values, folder)
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def _scored(vocabulary: Vocabulary) -> tuple[str, bytes]:
    """Returns the name and the content of a file of SentencePiece; raises ValueError if that does not load it."""
    from sentencepiece import SentencePieceProcessor

    v = vocabulary
    proto = model_proto(v.tokens, v.scores, v.kinds, ids=v.ids, add_prefix=v.adds_prefix)
    try:
        SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"SentencePiece says: {first_line(e)}") from e
    return "tokenizer.model", proto


def _byte_level(vocabulary: Vocabulary, splitting: Splitting | None) -> tuple[str, bytes]:
    """Returns the name and the content of a file of the library `tokenizers`, of a byte-level tokenizer.

    Raises:
        ValueError: the library does not make one of this vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    assert splitting is not None
    pairs: Any = [tuple(m.split(" ")) for m in vocabulary.merges]
    try:
        model = models.BPE(vocab=vocabulary.indices(), merges=pairs, ignore_merges=splitting.ignore_merges)
    except Exception as e:  # the library has no class of its own for it
        raise ValueError(f"tokenizers says: {first_line(e)}") from e
    tokenizer = Tokenizer(model)
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = steps_of(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    for kind, add in ((CONTROL, tokenizer.add_special_tokens), (USER_DEFINED, tokenizer.add_tokens)):
        add([AddedToken(t, special=kind == CONTROL, normalized=False) for t in vocabulary.of_kind(kind)])
    return "tokenizer.json", tokenizer.to_str().encode()
