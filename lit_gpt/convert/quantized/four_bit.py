"""Weights in bitsandbytes' 4 bits, as Unsloth publishes them: codes of 16 values, a scale for each block of them.

The scales may be in 8 bits themselves (double quantization, https://arxiv.org/abs/2305.14314 section 3).
"""

from typing import Any

import torch
from torch import Tensor

from lit_gpt.convert.quantized.parts import FLOATS, Kept, Parts, Weight
from lit_gpt.errors import shown
from lit_gpt.layers.quantize.four_bits import VALUES, FourBits
from lit_gpt.records import misfit, parse_object

STATE = ".quant_state.bitsandbytes__"
"""What stands between the name of a weight and that of its values, in the name of the tensor with its settings."""
_MOST_SETTINGS = 4096
"""Largest number of bytes of the settings."""
_KINDS: dict[str, Any] = {"blocksize": int, "shape": list[int], "nested_blocksize": int, "nested_offset": float}
_STORAGE = (torch.uint8, *FLOATS, torch.int8, torch.int16, torch.int32)
"""Dtypes of the tensor of codes, which is bytes in any of them (`bnb_4bit_quant_storage`)."""


def four_bits(parts: Parts, name: str) -> Weight:
    """Returns the weight of which `name` is the settings.

    Raises:
        UserError: the tensors do not go together.
    """
    weight, _, values = name.partition(STATE)
    stated = _settings(parts, name)
    shape, block = tuple(stated["shape"]), stated["blocksize"]
    n = shape[0] * shape[1]
    parts.take(weight, _STORAGE, 2)
    parts.require(parts.specs[weight].n_bytes == -(-n // 2), weight)
    n_blocks = -(-n // block)
    nested = f"{weight}.nested_absmax"
    is_nested = nested in parts.specs
    scales = f"{weight}.absmax"
    parts.require(parts.take(scales, (torch.uint8 if is_nested else torch.float32,), 1) == (n_blocks,), scales)
    parts.require(parts.take(f"{weight}.quant_map", (torch.float32,), 1) == (16,), f"{weight}.quant_map")
    if is_nested:
        n_nested = -(-n_blocks // _whole(parts, name, stated, "nested_blocksize"))
        parts.require(parts.take(nested, (torch.float32,), 1) == (n_nested,), nested, scales)
        parts.require(parts.take(f"{weight}.nested_quant_map", (torch.float32,), 1) == (256,), nested)
    table = parts.get(f"{weight}.quant_map").clone()

    def read(dtype: torch.dtype) -> Tensor:
        codes = parts.get(weight).contiguous().view(torch.uint8).flatten()
        return FourBits(codes, _scales(parts, weight, stated), block, table).dequantize(shape, dtype)

    def as_it_is() -> FourBits:
        codes = parts.get(weight).contiguous().view(torch.uint8).view(shape[0], shape[1] // 2)
        return FourBits(codes, _scales(parts, weight, stated).view(shape[0], -1), block, table, values=values)

    found = parts.weight(shape, read)
    is_known = values in VALUES and torch.equal(table, torch.tensor(VALUES[values]))
    if not is_known or shape[1] % block:
        return found
    return Weight(found.shape, found.read, found.parts, Kept(values, block, as_it_is))


def _scales(parts: Parts, weight: str, stated: dict[str, Any]) -> Tensor:
    """Returns the scale of each block, fp32."""
    scales = parts.get(f"{weight}.absmax")
    if scales.dtype == torch.float32:
        return scales
    nested = parts.get(f"{weight}.nested_absmax").repeat_interleave(stated["nested_blocksize"])[: len(scales)]
    return parts.get(f"{weight}.nested_quant_map")[scales.int()] * nested + stated.get("nested_offset", 0.0)


def _settings(parts: Parts, name: str) -> dict[str, Any]:
    """Returns the settings of a weight, which are JSON in a tensor of bytes; raises UserError if they are none."""
    (size,) = parts.take(name, (torch.uint8,), 1)
    if size > _MOST_SETTINGS:
        raise parts.misfit(f"{name!r} has {size:,} bytes, more than {_MOST_SETTINGS:,}")
    stated = parse_object(bytes(parts.get(name).tolist()), f"{parts.settings.where}, {name!r}")
    for key, kind in _KINDS.items():
        if key in stated and (problem := misfit(kind, stated[key])):
            raise parts.misfit(f"{name!r} says {key}={shown(stated[key])}, which {problem}")
    if len(stated.get("shape", ())) != 2 or min(stated["shape"]) < 1:
        raise parts.misfit(f"{name!r} says shape={shown(stated.get('shape'))}, which is not that of a matrix")
    _whole(parts, name, stated, "blocksize")
    return stated


def _whole(parts: Parts, name: str, stated: dict[str, Any], key: str) -> int:
    """Returns a size of blocks; raises UserError if it is none."""
    if not 2 <= stated.get(key, 0) <= 2**20 or stated[key] % 2:
        raise parts.misfit(f"{name!r} says {key}={shown(stated.get(key))}, which is not the size of a block")
    return stated[key]
