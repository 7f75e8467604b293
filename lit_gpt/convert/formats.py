"""A checkpoint of ours in the format of another tool, with all that the tool wants beside the weights."""

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
) -> None:
    """Fill `folder` with a checkpoint for transformers (hf), llama.cpp and Ollama (gguf), or litgpt (lit).

    Args:
        model: as `open_lit` gives it.
        source: where the files beside the weights are.
        dtype: of what is written as hf and lit; None keeps it.
        gguf_type: of gguf's matrices.
        rows: of the vocabulary's tensors; None keeps all.
        max_shard_bytes: size of one file of hf's weights.

    Raises:
        UserError: the tool lacks the architecture, a trait of it or the kind of tokenizer.
    """
    if format == "hf":
        write_hf(*model, source, folder, dtype, rows, max_shard_bytes)
    elif format == "gguf":
        write_modelfile(write_gguf(*model, source, folder, gguf_type, rows), source)
    else:
        write_litgpt(*model, source, folder, dtype, rows)
