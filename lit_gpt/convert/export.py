"""Writes a checkpoint of ours as a Hugging Face folder, one tensor at a time."""

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
from lit_gpt.convert.configs import config_to_hf
from lit_gpt.convert.multimodal import Whole, open_whole
from lit_gpt.convert.names import VOCABULARY, is_fused, stored_names, stream_to_hf, to_hf
from lit_gpt.convert.quantized.settings import without_settings
from lit_gpt.files import Spec, save_safetensors_shards, spec_of, write_text
from lit_gpt.prompts.exported import carry_style, settle_templates
from lit_gpt.records import read_object
from lit_gpt.tokenizer import Tokenizer

_COPIED_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Patterns of the checkpoint's files that are copied unchanged."""


def write_hf(
    config: Config,
    specs: dict[str, Spec],
    get: Callable[[str], Tensor],
    checkpoint_dir: Path,
    folder: Path,
    dtype: torch.dtype | None,
    rows: int | None,
    max_shard_bytes: int,
    multimodal_dir: Path | None = None,
) -> None:
    """Writes config.json, the weights in shards, and the tokenizer's files into `folder`.

    Args:
        specs: shape and dtype of each of our tensors.
        get: reads one of our tensors by name.
        dtype: dtype of the written weights; None keeps that of the checkpoint.
        rows: number of rows of the vocabulary's tensors; None keeps all.
        max_shard_bytes: largest size of a shard.
        multimodal_dir: the multimodal checkpoint that the decoder was taken from, whose other parts are put back.
    """
    config = replace(config, padded_vocab_size=rows or config.padded_vocab_size)
    hf = config_to_hf(config) | _special_ids(checkpoint_dir)
    meta = {n: torch.empty(shape, dtype=dtype or d, device="meta") for n, (shape, d) in specs.items()}
    if rows:
        meta |= {n: meta[n][:rows] for n in VOCABULARY if n in meta}
    source = open_whole(config, multimodal_dir) if config.wrapper else None
    fused = source is not None and is_fused(config, stored_names(source.names, config))  # as the original has them
    hf_specs = {name: spec_of(x) for name, x in to_hf(config, meta, fused).items()}

    def converted() -> Iterator[tuple[str, Tensor]]:
        for name, x in stream_to_hf(config, specs, get, rows, fused=fused):
            yield name, x if dtype is None else x.to(dtype)

    stated = str(next(iter(hf_specs.values())).dtype).removeprefix("torch.")
    if source is None:
        if config.wrapper:
            print(f"Only the language model is written; --multimodal_dir names the {config.wrapper} that it is of")
        save_safetensors_shards(hf_specs, converted(), folder, max_shard_bytes)
    else:
        whole = Whole(source, config)
        save_safetensors_shards(whole.specs(hf_specs, dtype), whole.tensors(converted, dtype), folder, max_shard_bytes)
        hf = whole.hf_config()
    hf["torch_dtype"] = stated
    (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(checkpoint_dir, folder)


def copy_tokenizer(checkpoint_dir: Path, folder: Path) -> None:
    """Copies the files of the tokenizer and the generation settings; of two chat templates, the one training used."""
    for pattern in _COPIED_FILES:
        for path in checkpoint_dir.glob(pattern):
            target = folder / path.relative_to(checkpoint_dir)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    settle_templates(folder)


@contextmanager
def styled(checkpoint_dir: Path, prompt_style: str | None, llama_cpp: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Yields a folder with the files beside the weights, adapted to the prompt style of training, and messages on it.

    Args:
        prompt_style: None for a model that was not trained here; its files are used unchanged.
        llama_cpp: whether the files are for llama.cpp, which tokenizes the start of a text unlike transformers.

    Raises:
        UserError: the style is unknown, or there is no tokenizer.
    """
    if prompt_style is None:
        yield checkpoint_dir, []
        return
    with TemporaryDirectory() as name:
        yield Path(name), copy_styled(checkpoint_dir, Path(name), prompt_style, llama_cpp)


def copy_styled(checkpoint_dir: Path, folder: Path, prompt_style: str, llama_cpp: bool = False) -> list[str]:
    """Copies the files beside the weights, adapted to the prompt style of training; returns messages on it.

    Raises:
        UserError: the style is unknown, or there is no tokenizer.
    """
    copy_tokenizer(checkpoint_dir, folder)
    if (path := checkpoint_dir / "config.json").is_file():
        hf = without_settings(read_object(path))  # its weights, if it was published quantized, are not now
        write_text(folder / path.name, json.dumps(hf, indent=2) + "\n")
    return carry_style(folder, prompt_style, llama_cpp)


def _special_ids(checkpoint_dir: Path) -> dict[str, Any]:
    """Returns the special tokens' ids for config.json, from the checkpoint's own config.json, else its tokenizer."""
    path = checkpoint_dir / "config.json"
    stated = read_object(path) if path.is_file() else {}
    tokenizer = Tokenizer(checkpoint_dir)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": None}
    return {key: stated.get(key, value) for key, value in ids.items()}
