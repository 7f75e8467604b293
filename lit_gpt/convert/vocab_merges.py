"""Makes tokenizer.json from vocab.json and merges.txt, the older pair of files that some checkpoints have instead."""

from pathlib import Path
from typing import Any

from lit_gpt.convert.gguf.splitting import find_splitting, steps_of
from lit_gpt.errors import UserError
from lit_gpt.files import write_text
from lit_gpt.records import read_object
from lit_gpt.tokenizer.settings import read_settings, special_names

_SPLITTINGS = {
    "GPT2Tokenizer": "gpt-2",
    "CodeGenTokenizer": "gpt-2",
    "GPTNeoXTokenizer": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
}
"""Splitting of each tokenizer class of transformers, which the two files do not state."""
_CLASSES = {"gpt_neox": "GPTNeoXTokenizer", "phi": "CodeGenTokenizer"}
_CLASSES |= dict.fromkeys(("qwen2", "qwen3", "qwen3_moe"), "Qwen2Tokenizer")
"""Tokenizer class by `model_type`, for when tokenizer_config.json names none."""


def join_vocabulary_and_merges(folder: Path) -> None:
    """Writes the tokenizer.json that transformers would make from vocab.json and merges.txt, if both exist.

    Raises:
        UserError: a file is damaged, or the splitting of the tokenizer's class is unknown.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary_file.is_file() and merges_file.is_file()):
        return
    settings = read_settings(folder)
    name = settings.config.get("tokenizer_class") or _CLASSES.get(settings.model.get("model_type", ""), "")
    splitting = find_splitting(_SPLITTINGS.get(name.removesuffix("Fast"), ""))
    if splitting is None:
        raise UserError(
            f"{folder} has vocab.json and merges.txt, which do not say how {name or 'a tokenizer without a class'} "
            "splits a text; put the tokenizer.json of the model beside them"
        )
    # an added token keeps its id only if the vocabulary has it, too
    vocabulary = read_object(vocabulary_file) | {t.content: t.id for t in settings.added}
    lines = merges_file.read_text(encoding="utf-8").splitlines()
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    try:
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as e:  # the library raises bare Exceptions
        raise UserError(f"{vocabulary_file} and {merges_file.name} do not fit together ({e}); get both again") from e
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = steps_of(splitting)
    if settings.config.get("add_prefix_space"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    roles = set(special_names(settings.names)) & vocabulary.keys()
    added = {t.content: (t.special, t.lstrip, t.rstrip, t.single_word) for t in settings.added}
    added = {token: (True, False, False, False) for token in roles} | added
    for token in sorted(added, key=vocabulary.__getitem__):
        special, left, right, word = added[token]
        flags = {"special": special, "normalized": not special}
        backend.add_tokens([AddedToken(token, lstrip=left, rstrip=right, single_word=word, **flags)])
    write_text(folder / "tokenizer.json", backend.to_str())
    print(f"Made tokenizer.json of vocab.json and merges.txt, splitting texts as {name} does")
