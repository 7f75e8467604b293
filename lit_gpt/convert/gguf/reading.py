"""Reads a gguf file as the Hugging Face checkpoint it was made from: configuration and tensors."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gpt.checkpoints.sizes import require_weights_for
from lit_gpt.config import Config
from lit_gpt.convert.configs import config_to_hf
from lit_gpt.convert.gguf.checking import check_shapes
from lit_gpt.convert.gguf.header import GgufTensor, Header, read_header
from lit_gpt.convert.gguf.layouts import FUSED, Piece, is_norm, pieces
from lit_gpt.convert.gguf.metadata import from_metadata
from lit_gpt.convert.gguf.parts import AGAIN, COUNT, parts_of, require_whole
from lit_gpt.convert.gguf.scaling import FREQUENCIES, LONG, SHORT
from lit_gpt.convert.gguf.values import CACHED, DTYPES, QUANTIZED, STEP, dequantize
from lit_gpt.convert.names import hf_sources, is_tied, lit_shapes
from lit_gpt.convert.packing import unpack
from lit_gpt.errors import UserError
from lit_gpt.families.family import Part, Separate
from lit_gpt.files import Spec
from lit_gpt.layers.qkv import halves_of_pairs, pairs_of_halves

_MOST_FREQUENCIES = 2**16
"""Largest number of frequencies of rotary embeddings, half the channels of a head."""


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
        self.path, self.scratch = path, torch.empty(CACHED)
        parts = parts_of(path)
        headers = [read(part) for part in parts]
        found = [
            (part, name, t) for part, header in zip(parts, headers, strict=True) for name, t in header.tensors.items()
        ]
        self.tensors: dict[str, GgufTensor] = {}
        self.files: dict[str, Path] = {}
        for part, name, tensor in found:
            if name in self.tensors:
                raise UserError(f"{part} holds the tensor {name!r}, and so does {self.files[name].name}; {AGAIN}")
            if tensor.kind not in (*DTYPES, *QUANTIZED):
                known = ", ".join((*DTYPES, *QUANTIZED))
                raise UserError(f"{part}: {name!r} is of type {tensor.kind}, which is not read; known are {known}")
            self.tensors[name], self.files[name] = tensor, part
        metadata = {name: value for name, value in headers[0].values.items() if not name.startswith("tokenizer")}
        require_whole(metadata, len(self.tensors), parts)
        self.shapes = {name: t.shape for name, t in self.tensors.items()}
        self._require_layers(metadata)
        self.config: Config = from_metadata(metadata, self.shapes, self._rope_factors(), path)
        self.is_fused = f"{FUSED}.weight".format(0) in self.shapes
        matrices = {t.kind for name, t in self.tensors.items() if len(t.shape) > 1 and not is_kept(name)}
        stored = DTYPES[matrices.pop()] if len(matrices) == 1 and matrices <= DTYPES.keys() else torch.float32
        self.dtype = dtype or stored
        specs = {name: Spec(shape, self.dtype) for name, shape in self.shapes.items()}
        require_weights_for(self.config, specs, path)

    def _require_layers(self, metadata: Mapping[str, Any]) -> None:
        """Checks that there are not more layers than tensors; raises UserError if there are."""
        for key, n in metadata.items():
            if key.endswith(".block_count") and isinstance(n, int) and n > len(self.tensors):
                raise UserError(f"{self.path} has {len(self.tensors):,} tensors, and {key}={n:,}; {AGAIN}")

    def _rope_factors(self) -> dict[str, list[float]]:
        """Returns the values of the tensors that divide the frequencies; raises UserError if they are too large."""
        found = {}
        for name in (FREQUENCIES, LONG, SHORT):
            if name not in self.tensors:
                continue
            tensor = self.tensors[name]
            if len(tensor.shape) != 1 or tensor.shape[0] > _MOST_FREQUENCIES or tensor.kind not in DTYPES:
                raise UserError(f"{self.path}: the tensor {name!r} is {tensor.kind} {list(tensor.shape)}; {AGAIN}")
            found[name] = self.read_piece(Piece(name)).tolist()
        return found

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
        check_shapes(self.tensors, self._shapes_needed(names), self.path)

    def _shapes_needed(self, names: list[str]) -> dict[str, tuple[int, ...]]:
        """Returns the shape that each tensor of the files must have."""
        ours, needed = lit_shapes(self.config), {}
        for name in names:
            shape, found = tuple(ours[name]), self.pieces(name)
            rows = self.config.qkv_sizes if len(found) == 3 else (shape[0],)
            for piece, n in zip(found, rows, strict=True):
                stacked = (piece.of,) if piece.is_stacked else ()
                needed[piece.tensor] = (*stacked, n if piece.is_stacked else n * piece.of, *shape[1:])
        return needed

    def read_source(self, parts: list[tuple[str, int]]) -> Tensor:
        """Returns one Hugging Face tensor, made from the tensors of ours that hold it."""
        name, i = parts[0]
        rule = hf_sources(name, self.config)[0]
        found = self.pieces(name)
        if isinstance(rule, Separate) and len(found) == 3:
            x = self.read_piece(found[i])
            x = pairs_of_halves(x, self.config) if rule.pairs and i < 2 else x
        elif isinstance(rule, Part):
            x = torch.cat([self.read_ours(name) for name, _ in parts])
        else:
            x = unpack(rule, self.read_ours(name), self.config)[i]
        if self.config.norm_unit_offset and is_norm(name) and name.endswith(".weight"):
            x = x - 1  # llama.cpp stores the full factor 1 + weight
        return x.to(self.dtype)

    def read_ours(self, name: str) -> Tensor:
        parts = [self.read_piece(piece) for piece in self.pieces(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_piece(self, piece: Piece) -> Tensor:
        tensor, path = self.tensors[piece.tensor], self.files[piece.tensor]
        shape, n_bytes = self.shape_of_piece(piece), tensor.n_bytes // piece.of
        start = tensor.start + piece.index * n_bytes
        if tensor.kind in DTYPES:
            data = torch.from_numpy(np.fromfile(path, np.uint8, n_bytes, offset=start))
            x = data.view(DTYPES[tensor.kind]).view(shape)
        else:
            x = torch.empty(shape, dtype=self.dtype)
            row = n_bytes // (x.numel() // shape[-1])
            for part in x.view(-1, shape[-1]).split(max(1, STEP // shape[-1])):
                data = np.fromfile(path, np.uint8, row * len(part), offset=start)
                dequantize(data, tensor.kind, part, self.scratch)
                start += data.nbytes
        return halves_of_pairs(x, self.config) if piece.heads else x

    def shape_of_piece(self, piece: Piece) -> tuple[int, ...]:
        first, *rest = self.tensors[piece.tensor].shape
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


def read(path: Path) -> Header:
    """Returns the header of a file; raises UserError if it is damaged, has no tensors, or the package is missing."""
    header = read_header(path)
    if not header.tensors and COUNT not in header.values:  # the first of several parts may have metadata only
        raise UserError(f"{path} holds no tensors; {AGAIN}")
    return header
