"""Writes a checkpoint of ours as a gguf file, one tensor at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.gguf.layouts import LAYOUTS, Piece, is_norm, pieces
from lit_gpt.convert.gguf.metadata import to_metadata
from lit_gpt.convert.gguf.naming import name_in_file
from lit_gpt.convert.gguf.quantizing import TYPES, find_quantizer, quantize
from lit_gpt.convert.gguf.reading import is_kept
from lit_gpt.convert.gguf.scaling import rope_tensors
from lit_gpt.convert.gguf.tokens import special_tokens, tokenizer_metadata
from lit_gpt.convert.gguf.values import BLOCK, BYTES, encoded
from lit_gpt.convert.names import EMBEDDINGS, HEAD, VOCABULARY, fit_rows, is_tied
from lit_gpt.errors import UserError
from lit_gpt.files import Spec
from lit_gpt.files.behind import Behind
from lit_gpt.files.whole import allocate, require_room
from lit_gpt.layers.qkv import pairs_of_halves
from lit_gpt.tokenizer import Tokenizer

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""Value of `general.file_type`, by the type of the matrices."""

_ALIGNMENT = 32
"""Number of bytes to whose multiples the start and the end of each tensor are aligned."""


class _Slot(NamedTuple):
    """Shape and type of a tensor in the file."""

    shape: tuple[int, ...]
    kind: str

    @property
    def n_bytes(self) -> int:
        return int(torch.Size(self.shape).numel() * BYTES[self.kind])


def write_gguf(
    config: Config,
    specs: Mapping[str, Spec],
    get: Callable[[str], Tensor],
    checkpoint_dir: Path,
    folder: Path,
    kind: str,
    rows: int | None = None,
    templates: Mapping[str, str] | None = None,
) -> Path:
    """Writes <name>-<kind>.gguf into `folder`, with the weights and the tokenizer, and returns its path.

    The types in `quantizing.TYPES` are made by llama.cpp's own program from an unquantized file.

    Norms, biases and the router of the experts are in fp32; with Q8_0, matrices whose row length is not a multiple of
    32 are in F16. All this is as in llama.cpp's own converter.

    Args:
        specs: shape and dtype of each of our tensors.
        get: reads one of our tensors by name.
        checkpoint_dir: the folder with the tokenizer.
        kind: type of the matrices, one of FILE_TYPES or of quantizing.TYPES.
        rows: number of rows of the vocabulary's tensors; None keeps all.
        templates: text of each chat template by name, with "default" for the default one; None takes those of
            `checkpoint_dir`.

    Raises:
        UserError: llama.cpp lacks the architecture, a trait of it or the kind of tokenizer; a value too large for F16;
            its quantizer is missing or fails.
    """
    program = find_quantizer(kind) if kind in TYPES else None
    exact = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(specs[EMBEDDINGS].dtype, "F32") if program else kind
    config = replace(config, padded_vocab_size=rows or config.padded_vocab_size)
    metadata = to_metadata(config)
    names = [name for name in specs if not is_tied(name, config)]
    if config.tie_embeddings and LAYOUTS[config.architecture].head == "own":
        names.append(HEAD)
        specs, get = {**specs, HEAD: specs[EMBEDDINGS]}, partial(_tied_head, get)
    extra = rope_tensors(config)
    slots = _plan(config, names, specs, exact) | {name: _Slot(tuple(x.shape), "F32") for name, x in extra.items()}
    path = folder / f"{config.name}-{exact}.gguf"
    require_room(sum(slot.n_bytes for slot in slots.values()), path)
    tokenizer = tokenizer_metadata(checkpoint_dir, config, templates)
    named = replace(config, name=name_in_file(config.name, Tokenizer(checkpoint_dir), special_tokens(tokenizer)))
    starts = _write_header(path, named, metadata=metadata, tokenizer=tokenizer, slots=slots, kind=exact)
    tensors = ((name, fit_rows(name, get(name), rows)) for name in names)
    _stream_values(path, config, tensors, extra=extra, slots=slots, starts=starts)
    if program is None:
        return path
    quantized = folder / f"{config.name}-{kind}.gguf"
    quantize(program, path, quantized, kind)
    return quantized


def _stream_values(
    path: Path,
    config: Config,
    tensors: Iterable[tuple[str, Tensor]],
    extra: Mapping[str, Tensor],
    slots: dict[str, _Slot],
    starts: Mapping[str, int],
) -> None:
    """Writes the tensors' values into a file that has all else, one tensor at a time.

    Args:
        tensors: our tensors by our names.
        extra: tensors by their names in the file, which are written unchanged.
        starts: the byte at which each tensor of the file starts.
    """
    last = next(reversed(slots))
    with open(path, "rb+") as file:
        allocate(file, starts[last] + slots[last].n_bytes + -slots[last].n_bytes % _ALIGNMENT)
    with Behind() as behind:
        for name, tensor in tensors:
            parts = _split(tensor, pieces(name, config), config, name)
            for piece, x in parts:
                slot = slots[piece.tensor]
                start = starts[piece.tensor] + piece.index * (slot.n_bytes // piece.of)
                _write_values(behind, path, start=start, x=x, kind=slot.kind, name=name)
            del tensor, parts, x  # frees the tensor before the next one is read
        for name, x in extra.items():
            _write_values(behind, path, start=starts[name], x=x, kind="F32", name=name)


def _tied_head(get: Callable[[str], Tensor], name: str) -> Tensor:
    """Returns one of our tensors by name; the embeddings for a tied head."""
    return get(EMBEDDINGS if name == HEAD else name)


def _plan(config: Config, names: list[str], specs: Mapping[str, Spec], kind: str) -> dict[str, _Slot]:
    """Returns the shape and type of each tensor of the file."""
    slots: dict[str, _Slot] = {}
    for name in names:
        shape = list(specs[name].shape)
        if name in VOCABULARY:
            shape[0] = config.padded_vocab_size
        found = pieces(name, config)
        sizes = config.qkv_sizes if len(found) == 3 else (shape[0],)
        for piece, n in zip(found, sizes, strict=True):
            whole = (piece.of, n, *shape[1:]) if piece.is_stacked else (n * piece.of, *shape[1:])
            slots[piece.tensor] = _Slot(whole, _kind_of(piece.tensor, whole, kind))
    return slots


def _kind_of(tensor: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1 or is_kept(tensor):
        return "F32"
    return "F16" if kind == "Q8_0" and shape[-1] % BLOCK else kind


def _split(x: Tensor, found: list[Piece], config: Config, name: str) -> list[tuple[Piece, Tensor]]:
    """Returns the pieces of one of our tensors, with their values as the file has them."""
    if config.norm_unit_offset and is_norm(name) and name.endswith(".weight"):
        x = x.float() + 1
    parts = x.split(config.qkv_sizes) if len(found) == 3 else (x,)
    return [(p, pairs_of_halves(part, config) if p.heads else part) for p, part in zip(found, parts, strict=True)]


def _write_values(behind: Behind, path: Path, start: int, x: Tensor, kind: str, name: str) -> None:
    """Writes the values of a tensor at byte `start` of the file; raises UserError if one is too large for F16."""
    try:
        for data in encoded(x, kind):
            start += behind.write(path, start, data.numpy())
    except OverflowError as e:
        raise UserError(
            f"{name} has values beyond {torch.finfo(torch.float16).max:,.0f}, the largest of F16; pass --gguf_type BF16"
        ) from e


def _write_header(
    path: Path,
    config: Config,
    metadata: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    slots: Mapping[str, _Slot],
    kind: str,
) -> dict[str, int]:
    """Writes the file without the tensors' values, and returns the byte at which each tensor starts."""
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ModuleNotFoundError as e:
        raise UserError(f'{path.name} needs the package gguf; run: pip install "gguf>=0.10"') from e
    import numpy as np

    layout = LAYOUTS[config.architecture]
    writer = GGUFWriter(path, layout.name)
    writer.add_type("model")
    writer.add_name(config.name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    for key, value in [*((f"{layout.name}.{k}", v) for k, v in metadata.items()), *tokenizer.items()]:
        add(writer, key, value)
    for name, slot in slots.items():
        writer.add_tensor_info(name, slot.shape, np.dtype(np.float32), slot.n_bytes, GGMLQuantizationType[slot.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    starts = {}
    end = path.stat().st_size
    for name, slot in slots.items():
        starts[name] = end + -end % _ALIGNMENT
        end = starts[name] + slot.n_bytes
    return starts


def add(writer: Any, key: str, value: Any) -> None:
    """Adds a key with its value, in the type that llama.cpp expects."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
