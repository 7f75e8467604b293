"""Writes a LoRA run as a llama.cpp adapter: two small matrices A and B for each tensor that the run updates.

llama.cpp adds alpha / R B A x to the result of a matmul, where R is the rank in the file (src/llama-adapter.h), with
one alpha for all tensors. If a run scales differently (rsLoRA, several ranks), the remaining factor is put into B.

Letters: R rank of one of our updates, or the sum of the ranks of those that share a tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.args import LoRAArgs
from lit_gpt.checkpoints.base import digest_of
from lit_gpt.checkpoints.layouts import open_lit
from lit_gpt.checkpoints.runs import read_run, require_base
from lit_gpt.checkpoints.trained import load_trained, trained_path
from lit_gpt.config import Config
from lit_gpt.convert.gguf.layouts import LAYOUTS, Piece, pieces
from lit_gpt.convert.gguf.metadata import require_layout
from lit_gpt.errors import UserError
from lit_gpt.files import only_writer, replace_folder
from lit_gpt.layers.qkv import pairs_of_halves
from lit_gpt.methods import METHODS, lora
from lit_gpt.methods.lora.layer import LoRALinear
from lit_gpt.model import GPT

_MERGE = "merge it with scripts/merge_lora.py and convert what comes out"


class _Update(NamedTuple):
    """One of our updates, and the part of a tensor that it changes."""

    A: Tensor  # (R, in_features)
    B: Tensor  # (rows, R), with the scale in it
    piece: Piece
    start: int
    """First row of the piece that the update changes."""
    rows: int
    """Number of rows of the piece."""


@torch.no_grad()  # weights that are assigned to a layer require gradients
def adapter_tensors(config: Config, args: LoRAArgs, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the adapter that is equivalent to a run's updates, by their names in the file.

    Args:
        trained: the run's weights.

    Raises:
        UserError: llama.cpp lacks the architecture, or its adapters cannot hold what the run trained.
    """
    layout = require_layout(config)
    if args.lora_dora:
        raise UserError(f"llama.cpp's adapters have no magnitudes, and the run trained them (DoRA); {_MERGE}")
    if args.lora_head and config.tie_embeddings and layout.head != "own":
        raise UserError(f"llama.cpp has one tensor for {config.name}'s embeddings and head, and --lora_head; {_MERGE}")
    with torch.device("meta"):
        model = GPT(config)
        lora.inject(model, args)
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoRALinear)}
    if beyond := [n for n in trained if n.partition(".lora_")[0] not in layers]:
        raise UserError(f"the run has {beyond[0]} of its own, and llama.cpp's adapters have updates only; {_MERGE}")
    changed: dict[str, list[_Update]] = {}
    for path, layer in layers.items():
        prefix = f"{path}."
        values = {n.removeprefix(prefix): x for n, x in trained.items() if n.startswith(prefix)}
        layer.load_state_dict(values, strict=False, assign=True)
        for update in _updates(path, layer, config):
            changed.setdefault(update.piece.tensor, []).append(update)
    tensors = {}
    for name, parts in changed.items():
        A, B = _stacked(parts) if parts[0].piece.is_stacked else _side_by_side(parts)
        tensors |= {f"{name}.lora_a": A, f"{name}.lora_b": B * (B.size(-1) / args.lora_alpha)}
    return tensors


def _updates(path: str, layer: LoRALinear, config: Config) -> list[_Update]:
    """Returns the updates of one of our layers."""
    found = pieces(f"{path}.weight", config)
    sizes = list(config.qkv_sizes) if len(found) == 3 else [layer.linear.out_features]
    made = []
    for (start, stop), (A, B) in zip(layer.blocks, layer.factors(), strict=True):
        i = next(i for i in range(len(sizes)) if stop <= sum(sizes[: i + 1]))
        piece, B = found[i], B * layer.scaling
        B = pairs_of_halves(B, config) if piece.heads else B
        made.append(_Update(A=A, B=B, piece=piece, start=start - sum(sizes[:i]), rows=sizes[i]))
    return made


def _side_by_side(parts: list[_Update]) -> tuple[Tensor, Tensor]:
    """Returns A (R, in_features) and B (rows of the tensor, R), which join the updates of parts of one matrix."""
    A = torch.cat([part.A for part in parts])
    B = A.new_zeros(parts[0].rows * parts[0].piece.of, len(A))
    column = 0
    for part in parts:
        row = part.piece.index * part.rows + part.start
        B[row : row + len(part.B), column : column + len(part.A)] = part.B
        column += len(part.A)
    return A, B


def _stacked(parts: list[_Update]) -> tuple[Tensor, Tensor]:
    """Returns A (experts, R, in_features) and B (experts, rows, R); zeros for experts without an update."""
    rank, first = max(len(part.A) for part in parts), parts[0]
    A = first.A.new_zeros(first.piece.of, rank, first.A.size(1))
    B = first.B.new_zeros(first.piece.of, first.rows, rank)
    for part in parts:
        A[part.piece.index, : len(part.A)] = part.A
        B[part.piece.index, :, : len(part.A)] = part.B
    return A, B


def write_adapter(config: Config, args: LoRAArgs, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a gguf file with the tensors of `adapter_tensors`, in fp32 as llama.cpp's own converter does."""
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError as e:
        raise UserError(f'{path.name} needs the package gguf; run: pip install "gguf>=0.10"') from e
    writer = GGUFWriter(path, LAYOUTS[config.architecture].name)
    writer.add_type("adapter")
    writer.add_name(config.name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(args.lora_alpha))
    for name, x in tensors.items():
        writer.add_tensor(name, x.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_adapter(checkpoint_dir: Path, run_dir: Path, folder: Path, overwrite: bool) -> Path:
    """Writes the run in `run_dir` as <name>-lora.gguf into a new folder, and returns the file's path.

    Raises:
        UserError: the run is not a LoRA run of this checkpoint, or an adapter cannot hold it; `folder` is not empty.
    """
    run = read_run(run_dir)
    if run.method != "lora":
        raise UserError(f"{run_dir} is a run of {run.method}, and only LoRA's become adapters of llama.cpp")
    config, specs, get = open_lit(checkpoint_dir)
    require_base(run, run_dir, checkpoint_dir, digest_of(specs, get))
    args = METHODS["lora"].args(**run.method_args)
    tensors = adapter_tensors(config, args, load_trained(trained_path(run_dir, run.method)))
    name = f"{config.name}-lora.gguf"
    with only_writer(folder):
        replace_folder(folder, lambda temporary: write_adapter(config, args, tensors, temporary / name), overwrite)
    return folder / name
