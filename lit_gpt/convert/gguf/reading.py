"""Reads a gguf file as the Hugging Face checkpoint it was made from: configuration and tensors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.configs import config_to_hf
from lit_gpt.convert.gguf.layouts import FUSED, Piece, is_norm, pieces
from lit_gpt.convert.gguf.metadata import from_metadata
from lit_gpt.convert.gguf.parts import AGAIN, COUNT, parts_of, require_whole
from lit_gpt.convert.gguf.scaling import FREQUENCIES, LONG, SHORT
from lit_gpt.convert.gguf.values import DTYPES, QUANTIZED, STEP, dequantize, unpaired
from lit_gpt.convert.names import hf_sources, is_tied, lit_shapes, unpack
from lit_gpt.errors import UserError
from lit_gpt.families.family import Part, Separate
from lit_gpt.files import Spec


def open_gguf(
    path: Path, dtype: torch.dtype | None = None
) -> tuple[dict[str, Any], dict[str, Callable[[], Tensor]], dict[str, Spec]]:
    """Returns the content of config.json, a function that reads each tensor, and each tensor's spec.

    The tensors have Hugging Face names, and are dequantized as they are read.

    Args:
        path: the file, or one part of a divided model whose other parts are beside it.
        dtype: dtype of the tensors; None is that of the file, or fp32 if the file is quantized.

    Raises:
        UserError: the file is damaged, or its architecture, a field or a tensor type is not supported.
    """
    file = _GgufFile(path, dtype)
    config = file.config
    sources: dict[str, list[tuple[str, int]]] = {}  # Hugging Face name -> (our tensor that has it, its index there)
    for name in lit_shapes(config):
        if not is_tied(name, config):
            for i, source in enumerate(hf_sources(name, config)[1]):
                sources.setdefault(source, []).append((name, i))
    file.require_all_used([name for parts in sources.values() for name, _ in parts])
    read_one = {source: partial(file.read_source, parts) for source, parts in sources.items()}
    specs = {source: Spec(file.shape_of_source(parts), file.dtype) for source, parts in sources.items()}
    return config_to_hf(config), read_one, specs


class _GgufFile:
    """The tensors of a model's file or files, by our names.

    The files are not memory-mapped: a tensor is in memory once, for as long as it is used.
    """

    def __init__(self, path: Path, dtype: torch.dtype | None) -> None:
        self.path, self.scratch = path, torch.empty(STEP)
        parts = parts_of(path)
        readers = [read(part) for part in parts]
        found = [(part, t) for part, reader in zip(parts, readers, strict=True) for t in reader.tensors]
        self.tensors, self.files = {t.name: t for _, t in found}, {t.name: part for part, t in found}
        for part, tensor in found:
            if tensor.tensor_type.name not in (*DTYPES, *QUANTIZED):
                kind, known = tensor.tensor_type.name, ", ".join((*DTYPES, *QUANTIZED))
                raise UserError(f"{part}: {tensor.name!r} is of type {kind}, which is not read; known are {known}")
        fields = readers[0].fields
        metadata = {name: field.contents() for name, field in fields.items() if not name.startswith("tokenizer")}
        require_whole(metadata, len(self.tensors), parts)
        shapes = {name: tuple(map(int, reversed(t.shape))) for name, t in self.tensors.items()}
        factors = {n: self.read_piece(Piece(n)).tolist() for n in (FREQUENCIES, LONG, SHORT) if n in shapes}
        self.config: Config = from_metadata(metadata, shapes, factors, path)
        self.shapes = shapes
        self.is_fused = f"{FUSED}.weight".format(0) in shapes
        matrices = {t.tensor_type.name for _, t in found if len(t.shape) > 1 and not is_kept(t.name)}
        stored = DTYPES[matrices.pop()] if len(matrices) == 1 and matrices <= DTYPES.keys() else torch.float32
        self.dtype = dtype or stored

    def pieces(self, name: str) -> list[Piece]:
        return pieces(name, self.config, self.is_fused and ".attn.qkv." in name)

    def require_all_used(self, names: list[str]) -> None:
        """Checks that the files have exactly the tensors that the model needs; raises UserError if not."""
        needed = {piece.tensor for name in names for piece in self.pieces(name)}
        if missing := sorted(needed - self.tensors.keys()):
            raise UserError(f"{self.path} has no tensor {missing[0]!r}; {AGAIN}")
        if unread := sorted(self.tensors.keys() - needed - {FREQUENCIES, LONG, SHORT}):
            kind = self.config.architecture
            raise UserError(f"{self.path}: tensor {unread[0]!r} has no place in a {kind} model of this toolkit")

    def read_source(self, parts: list[tuple[str, int]]) -> Tensor:
        """Returns one Hugging Face tensor, made from the tensors of ours that hold it."""
        name, i = parts[0]
        rule = hf_sources(name, self.config)[0]
        found = self.pieces(name)
        if isinstance(rule, Separate) and len(found) == 3:
            x = self.read_piece(found[i])
        elif isinstance(rule, Part):
            x = torch.cat([self.read_ours(name) for name, _ in parts])
        else:
            x = unpack(rule, self.read_ours(name), self.config)[i]
        if self.config.norm_unit_offset and is_norm(name):
            x = x - 1  # llama.cpp stores the full factor 1 + weight
        return x.to(self.dtype)

    def read_ours(self, name: str) -> Tensor:
        parts = [self.read_piece(piece) for piece in self.pieces(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_piece(self, piece: Piece) -> Tensor:
        tensor, path = self.tensors[piece.tensor], self.files[piece.tensor]
        shape, n_bytes = self.shape_of_piece(piece), int(tensor.n_bytes) // piece.of
        start = int(tensor.data_offset) + piece.index * n_bytes
        if tensor.tensor_type.name in DTYPES:
            data = torch.from_numpy(np.fromfile(path, np.uint8, n_bytes, offset=start))
            x = data.view(DTYPES[tensor.tensor_type.name]).view(shape)
        else:
            x = torch.empty(shape, dtype=self.dtype)
            row = n_bytes // (x.numel() // shape[-1])
            for part in x.view(-1, shape[-1]).split(max(1, STEP // shape[-1])):
                data = np.fromfile(path, np.uint8, row * len(part), offset=start)
                dequantize(data, tensor.tensor_type, part, self.scratch if part.numel() <= STEP else None)
                start += data.nbytes
        return unpaired(x, piece.heads) if piece.heads else x

    def shape_of_piece(self, piece: Piece) -> tuple[int, ...]:
        first, *rest = map(int, reversed(self.tensors[piece.tensor].shape))
        return tuple(rest) if piece.is_stacked else (first // piece.of, *rest)

    def shape_of_source(self, parts: list[tuple[str, int]]) -> tuple[int, ...]:
        """Returns the shape of what `read_source` returns, without reading it."""
        name, i = parts[0]
        rule = hf_sources(name, self.config)[0]
        found = [self.shape_of_piece(piece) for piece in self.pieces(name)]
        if isinstance(rule, Separate) and len(found) == 3:
            return found[i]
        rows, *rest = found[0]
        x = torch.empty((sum(shape[0] for shape in found), *rest), device="meta")
        if isinstance(rule, Part):
            return (rows * len(parts), *rest)
        return tuple(unpack(rule, x, self.config)[i].shape)


def is_kept(name: str) -> bool:
    """Returns whether a matrix is in fp32 whatever the type of the file."""
    return name.endswith(("_norm.weight", "ffn_gate_inp.weight"))


def read(path: Path) -> Any:
    """Opens a file as a `gguf.GGUFReader`; raises UserError if it is damaged or the package is missing."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as e:
        raise UserError(f'{path} needs the package gguf; run: pip install "gguf>=0.10"') from e
    try:
        reader = GGUFReader(path)
        end = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, OverflowError) as e:
        raise UserError(f"{path} is truncated or damaged ({e}); {AGAIN}") from e
    if not end and COUNT not in reader.fields:  # the first of several parts may have metadata only
        raise UserError(f"{path} holds no tensors; {AGAIN}")
    if end > path.stat().st_size:
        raise UserError(f"{path} is truncated: {path.stat().st_size:,} bytes instead of {end:,}; {AGAIN}")
    return reader
