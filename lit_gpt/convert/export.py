"""Write a checkpoint of ours as a Hugging Face folder, one tensor at a time."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_to_hf, read_json
from lit_gpt.convert.names import VOCABULARY, stream_to_hf, to_hf
from lit_gpt.files import Spec, save_safetensors_shards, spec_of
from lit_gpt.prompts.exported import carry_style, settle_templates
from lit_gpt.tokenizer import Tokenizer

_BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
"""Files of the checkpoint that go along as they are."""


def write_hf(
    config: Config,
    specs: dict[str, Spec],
    get: Callable[[str], Tensor],
    checkpoint_dir: Path,
    folder: Path,
    dtype: torch.dtype | None,
    rows: int | None,
    max_shard_bytes: int,
) -> None:
    """Fill `folder` with config.json, the weights in shards, and the files of the tokenizer.

    Args:
        specs: of our tensors.
        get: reads one of them.
        dtype: of what is written; None keeps it.
        rows: of the vocabulary's tensors; None keeps all.
    """
    config = replace(config, padded_vocab_size=rows or config.padded_vocab_size)
    hf = config_to_hf(config) | _special_ids(checkpoint_dir)
    meta = {n: torch.empty(shape, dtype=dtype or d, device="meta") for n, (shape, d) in specs.items()}
    if rows:
        meta |= {n: meta[n][:rows] for n in VOCABULARY if n in meta}
    theirs = {name: spec_of(x) for name, x in to_hf(config, meta).items()}

    def converted() -> Iterator[tuple[str, Tensor]]:
        for name, x in stream_to_hf(config, specs, get, rows):
            yield name, x if dtype is None else x.to(dtype)

    save_safetensors_shards(theirs, converted(), folder, max_shard_bytes)
    hf["torch_dtype"] = str(next(iter(theirs.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(checkpoint_dir, folder)


def copy_tokenizer(checkpoint_dir: Path, folder: Path) -> None:
    """Copy the files of the tokenizer and of generation; of two chat templates, the one that training used."""
    for pattern in _BESIDE:
        for path in checkpoint_dir.glob(pattern):
            at = folder / path.relative_to(checkpoint_dir)
            at.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, at)
    settle_templates(folder)


@contextmanager
def styled(checkpoint_dir: Path, prompt_style: str | None, llama_cpp: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the files beside the weights that a model trained in a style has, and lines that say so.

    Args:
        prompt_style: None for a model that was not trained here, whose own files are the right ones.
        llama_cpp: whether they are for llama.cpp, which tokenizes the beginning of a text otherwise than transformers.

    Raises:
        UserError: no such style, or no tokenizer.
    """
    if prompt_style is None:
        yield checkpoint_dir, []
        return
    with TemporaryDirectory() as name:
        yield Path(name), copy_styled(checkpoint_dir, Path(name), prompt_style, llama_cpp)


def copy_styled(checkpoint_dir: Path, folder: Path, prompt_style: str, llama_cpp: bool = False) -> list[str]:
    """Copy the files beside the weights as a model trained in a style has them; returns lines that say so.

    Raises:
        UserError: no such style, or no tokenizer.
    """
    copy_tokenizer(checkpoint_dir, folder)
    if (path := checkpoint_dir / "config.json").is_file():
        shutil.copyfile(path, folder / path.name)
    return carry_style(folder, prompt_style, llama_cpp)


def _special_ids(checkpoint_dir: Path) -> dict[str, Any]:
    """The special tokens' ids for config.json: as the checkpoint's own says, else as its tokenizer does."""
    path = checkpoint_dir / "config.json"
    stated = read_json(path) if path.is_file() else {}
    tokenizer = Tokenizer(checkpoint_dir)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": None}
    return {key: stated.get(key, value) for key, value in ids.items()}
