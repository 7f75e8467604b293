"""Writes state dicts as safetensors, in one file or in shards with an index, as transformers does."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_gpt.files.behind import Behind
from lit_gpt.files.tensors import DTYPES, Spec, checked, raw
from lit_gpt.files.whole import allocate, naming_a_full_disk, require_room, write_text


def save_safetensors_shards(
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes model.safetensors, or its shards with their index, from tensors that come one at a time and are not kept.

    The format: https://huggingface.co/docs/safetensors/index#format

    Args:
        specs: shape and dtype of each tensor, in the order in which they fill the shards.
        tensors: in any order; may be a generator.
        folder: one that nobody reads yet, such as `replace_folder` makes: files get their names before their content.
        max_shard_bytes: a tensor that is larger gets a shard of its own.
        metadata: strings for the header of each file; None writes what transformers requires.

    Returns:
        The paths of the files with weights.

    Raises:
        UserError: the disk has no room for them.
    """
    specs = {name: Spec(*spec) for name, spec in specs.items()}
    require_room(sum(spec.n_bytes for spec in specs.values()), folder / "model.safetensors")
    slots: dict[str, tuple[Path, int]] = {}
    shards = _plan_shards(specs, max_shard_bytes)
    paths = [folder / _shard_name(i, len(shards)) for i in range(len(shards))]
    for path, names in zip(paths, shards, strict=True):
        header, starts, end = _make_header({n: specs[n] for n in names}, metadata or {"format": "pt"})
        with naming_a_full_disk(path), open(path, "wb") as file:
            allocate(file, end)
            file.write(header)
        slots |= {name: (path, start) for name, start in starts.items()}
    with naming_a_full_disk(folder / "model.safetensors"), Behind() as behind:
        for name, x in checked(specs, tensors):
            behind.write(*slots[name], raw(x))
            del x  # before the next one is made
    if len(shards) > 1:
        total = sum(spec.n_bytes for spec in specs.values())
        weight_map = {name: slots[name][0].name for name in specs}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return paths


def _plan_shards(specs: Mapping[str, Spec], max_bytes: int) -> list[list[str]]:
    """Returns the tensor names of each shard, in order; a new shard starts wherever the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + spec.n_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.n_bytes
    return shards


def _shard_name(i: int, n: int) -> str:
    return "model.safetensors" if n == 1 else f"model-{i + 1:05d}-of-{n:05d}.safetensors"


def _make_header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """Returns the header of a safetensors file, the byte at which each tensor starts, and the size of the file."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    end = 0
    for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):  # so that all are aligned
        starts[name], end = end, end + spec.n_bytes
        fields[name] = {"dtype": DTYPES[spec.dtype][0], "shape": spec.shape, "data_offsets": [starts[name], end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: start + len(header) for name, start in starts.items()}, end + len(header)
