"""Writes a checkpoint of ours in the format of another tool, with all files that the tool needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.export import write_hf
from lit_gpt.convert.gguf import write_gguf
from lit_gpt.convert.litgpt import write_litgpt
from lit_gpt.convert.modelfile import write_modelfile
from lit_gpt.files import Spec

_Format = Literal["hf", "gguf", "lit"]


def write_as(
    format: _Format,
    model: tuple[Config, dict[str, Spec], Callable[[str], Tensor]],
    source: Path,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    gguf_type: str,
    rows: int | None,
    max_shard_bytes: int,
    multimodal_dir: Path | None = None,
) -> None:
    """Writes a checkpoint for transformers (hf), llama.cpp and Ollama (gguf), or litgpt (lit) into `folder`.

    Args:
        model: configuration, specs and reader of the checkpoint, as `open_lit` returns them.
        source: the folder with the files beside the weights.
        dtype: dtype of the weights in hf and lit; None keeps that of the checkpoint.
        gguf_type: type of the matrices in gguf.
        rows: number of rows of the vocabulary's tensors; None keeps all.
        max_shard_bytes: largest size of a shard in hf.
        multimodal_dir: in hf, the checkpoint that the decoder was taken from, whose other parts are put back.

    Raises:
        UserError: the tool lacks the architecture, a trait of it or the kind of tokenizer.
    """
    if format == "hf":
        write_hf(*model, source, folder, dtype, rows, max_shard_bytes, multimodal_dir)
    elif format == "gguf":
        write_modelfile(write_gguf(*model, source, folder, gguf_type, rows), source)
    else:
        write_litgpt(*model, source, folder, dtype, rows)
