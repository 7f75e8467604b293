"""Weights of a checkpoint that are in bitsandbytes' 4 bits, as the files had them that it was converted from.

In lit_model.pth such a weight (O, I) is two tensors, which stand for it wherever it is read:

transformer.h.0.mlp.proj.weight        uint8 (O, I / 2), the codes
transformer.h.0.mlp.proj.weight.nf4    fp32 (O, I / block), the scales, under the name of the kind of values (nf4, fp4)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.files import Spec
from lit_gpt.layers.quantize.four_bits import VALUES, FourBits

_EMBEDDINGS = "transformer.wte.weight"
"""A tensor that is not quantized, whose dtype the weights have where they are dequantized."""


@dataclass(frozen=True)
class Reader:
    """A reader of a checkpoint's tensors by name, in 16 or 32 bits whatever they are stored in."""

    read: Callable[[str], Tensor]
    four_bits: Callable[[str], FourBits | None]
    """Function that returns a tensor in 4 bits; None if it is not stored in them."""
    kinds: Mapping[str, str]
    """The tensors that are stored in 4 bits: name -> kind of their values."""

    def __call__(self, name: str) -> Tensor:
        return self.read(name)


def scales_name(name: str, values: str) -> str:
    """Returns the name of the scales of a weight in 4 bits."""
    return f"{name}.{values}"


def _stored_as(specs: Mapping[str, Spec], name: str) -> str | None:
    """Returns the kind of values that a weight of a file is in 4 bits of; None if it is not in 4 bits."""
    return next((values for values in VALUES if scales_name(name, values) in specs), None)


def dequantizing(specs: dict[str, Spec], get: Callable[[str], Tensor], path: Path) -> tuple[dict[str, Spec], Reader]:
    """Returns the specs and the reader of the weights that a file stands for.

    Args:
        specs: shape and dtype of the tensors as they are stored.
        get: reads one of these.
        path: the file, for messages.

    Raises:
        UserError: the scales of a weight in 4 bits do not fit its codes.
    """
    kinds = {name: values for name in specs if (values := _stored_as(specs, name))}
    dtype = specs[_EMBEDDINGS].dtype if _EMBEDDINGS in specs else torch.float32
    shapes = {name: _shape(specs, name, values, path) for name, values in kinds.items()}
    scales = {scales_name(name, values) for name, values in kinds.items()}
    meant = {n: Spec(shapes[n], dtype) if n in shapes else s for n, s in specs.items() if n not in scales}

    def four_bits(name: str) -> FourBits | None:
        if name not in kinds:
            return None
        codes, by = get(name), get(scales_name(name, kinds[name]))
        block = shapes[name][1] // by.size(1)
        return FourBits(codes, by, block, torch.tensor(VALUES[kinds[name]]), values=kinds[name])

    def read(name: str) -> Tensor:
        kept = four_bits(name)
        return get(name) if kept is None else kept.dequantize(shapes[name], dtype)

    return meant, Reader(read, four_bits, kinds)


def _shape(specs: Mapping[str, Spec], name: str, values: str, path: Path) -> tuple[int, int]:
    """Returns the shape of a weight in 4 bits; raises UserError if codes and scales do not go together."""
    codes, scales = specs[name], specs[scales_name(name, values)]
    if codes.dtype == torch.uint8 and scales.dtype == torch.float32 and len(codes.shape) == len(scales.shape) == 2:
        rows, columns = codes.shape[0], 2 * codes.shape[1]
        n_blocks = scales.shape[1]
        if scales.shape[0] == rows and n_blocks and columns % n_blocks == 0 and columns // n_blocks % 2 == 0:
            return rows, columns
    raise UserError(
        f"{path}: {name} {codes.dtype} {list(codes.shape)} and its scales {scales.dtype} {list(scales.shape)} do not "
        "go together; run scripts/convert_hf_checkpoint.py again"
    )
