"""Tensors of somebody's checkpoint folder, read lazily: safetensors, `.bin` or gguf, in one file or in shards."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_gpt.convert.configs import read_json
from lit_gpt.convert.gguf import open_gguf
from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Source:
    """A checkpoint as Hugging Face would have it, whatever its files are."""

    hf_config: dict[str, Any]
    config_file: Path
    """Where `hf_config` was read, for messages."""
    names: list[str]
    """The tensors it has."""
    get: Callable[[str], Tensor]
    """Reads one of them."""
    files: list[Path]


def open_source(folder: Path) -> Source:
    """The checkpoint in `folder`: safetensors if there are any, else `.bin`, else gguf.

    Raises:
        UserError: no weights, no config.json, a shard that is missing, a file that is damaged or would run code.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; download one with scripts/download.py --repo_id <org>/<name>")
    for pattern, index, open_file in (
        ("model*.safetensors", "model.safetensors.index.json", open_safetensors),
        ("pytorch_model*.bin", "pytorch_model.bin.index.json", open_bin),
    ):
        files = weight_files(folder, pattern, folder / index)
        if files:
            return open_files(folder, files, open_file)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        raise UserError(f"{folder} has {len(ggufs)} gguf files; leave one of {', '.join(f.name for f in ggufs)}")
    if ggufs:
        hf_config, tensors = open_gguf(ggufs[0])
        return Source(hf_config, ggufs[0], list(tensors), lambda name: tensors[name](), ggufs)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise UserError(f"{folder} has no weights (model*.safetensors, pytorch_model*.bin or *.gguf); it holds {held}")


def weight_files(folder: Path, pattern: str, index: Path) -> list[Path]:
    """The files that `index` names, or without an index all that match `pattern`.

    Raises:
        UserError: the index names a file that is not there.
    """
    if not index.is_file():
        return sorted(folder.glob(pattern))
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if missing := [n for n in names if not (folder / n).is_file()]:
        raise UserError(
            f"{folder} lacks {missing[0]} ({len(missing)} of {len(names)} files of {index.name}); "
            "run scripts/download.py again: it fetches what is missing"
        )
    return [folder / n for n in names]


def open_files(folder: Path, files: list[Path], open_file: Callable[[Path], dict[str, Any]]) -> Source:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder} has weights but no config.json; download it from where the weights came from")
    tensors: dict[str, Callable[[], Tensor]] = {}
    for path in files:
        found = open_file(path)
        if twice := tensors.keys() & found.keys():
            raise UserError(f"{path} holds {min(twice)!r}, and so does another file of {folder}")
        tensors |= found
    return Source(read_json(config_file), config_file, list(tensors), lambda name: tensors[name](), files)


def open_safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    """Tensor name -> a function that reads it. Raises: UserError if the file is damaged."""
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as e:
        raise UserError(f"{path} is truncated or damaged ({e}); delete it and download it again") from e
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def open_bin(path: Path) -> dict[str, Callable[[], Tensor]]:
    """Tensor name -> a function that reads it. Raises: UserError if the file is damaged or holds more than tensors."""

    @cache
    def load() -> dict[str, Tensor]:
        return load_tensors(path)

    return {name: partial(lambda name: load()[name], name) for name in load()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict saved by torch, memory-mapped where its format allows it.

    Raises:
        UserError: the file is damaged, or it is a pickle that would run code when loaded.
    """
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as e:
            if "mmap" not in str(e):  # files from before torch 1.6 are not zip archives and cannot be mapped
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(f"{path} is not a plain file of tensors and is not loaded: it could run code") from e
    except (RuntimeError, EOFError) as e:
        raise UserError(f"{path} is truncated or damaged ({str(e).splitlines()[0]}); delete it and get it again") from e
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path} holds something else than named tensors")
    return state
